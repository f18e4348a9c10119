"""UK Biobank: T1 bulk zips (field 20252) read without unpacking them, and tables in every export style.

`root` holds, in any folders, `<eid>_20252_<instance>_0.zip` (instance 2: imaging visit, 3: repeat imaging), and, itself
or one folder down, tables with the columns of `ukb_table.FIELDS`, and in any folder withdrawal lists (one eid a line),
called w<application>... or with `withdr` in the name (`ukb_files`).
Session is the instance, site the imaging centre. UK Biobank publishes no split.

The population was not selected by diagnosis and health records are not read, so `diagnosis` is NA: neither healthy nor
ill. People on a withdrawal list are in no table, and their zips are not opened; stores and runs from before are cleaned
by `brainage.data.withdrawal`.

Which zips hold the member is read from the directory at the end of each: listing 50,000 zips costs 50,000 small reads,
made by threads since they wait for the disk. A zip without it (some older ones lack T1_brain_to_MNI; a scan judged
unusable lies in another folder) or that is truncated is listed and left out.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import nibabel as nib
import numpy as np
import pandas as pd

from brainage.data.table import CohortTable, finish_table
from brainage.data.withdrawal import WITHDRAWN, withdrawn_people
from brainage.errors import DataError
from brainage.imaging.contract import InputContract
from brainage.imaging.preprocess import load_nifti_bytes, scale_foreground
from data_modules.reader import CohortReader
from data_modules.ukb_files import find_withdrawals, walk
from data_modules.ukb_table import find_tables, plain_eid, read_people
from data_modules.volumes import grid_contract, native_contract, read_native, read_prepared, refuse_spacing
from data_modules.zips import gunzip, has_member, read_member, split_locator

MEMBERS = {"brain_mni": "T1/T1_brain_to_MNI.nii.gz", "brain": "T1/T1_brain.nii.gz", "head": "T1/T1.nii.gz"}
PREPROCESSING = (  # the pipeline's bb_struct_init, Alfaro-Almagro et al., NeuroImage 2018
    "UK Biobank: gradient distortion corrected, warped (FNIRT, spline) to MNI152 1 mm, times the template's brain "
    "mask; no bias field correction after the scanner's own"
)
EXTRA = ("tiv_ml", "gm_ml", "wm_ml", "head_scaling")  # columns that are left out where no table has them
SCALED = "divided by the 99th percentile of the tissue"
_ZIP = re.compile(r"^(\d+)_20252_(\d+)_(\d+)\.zip$", re.IGNORECASE)
_THREADS = 16  # they wait for the disk, not for each other
_BLOCK = 64  # zips a thread takes at a time
_TRIED = 20  # images opened for one whose header gives the grid


@dataclass(frozen=True)
class Options:
    """`data.options` of UK Biobank; files are named relative to `data.root`."""

    tables: list[str] = field(default_factory=list)  # tables to read; empty: all that have UK Biobank's columns
    withdrawn: list[str] = field(default_factory=list)  # withdrawal lists of any other name


class UKBiobank(CohortReader):
    """One modality of UK Biobank. Extra columns, where the tables have them: tiv_ml (FreeSurfer, field 26521), gm_ml
    and wm_ml (25006, 25008), head_scaling (25000, volume of the template over that of the head).

    `brain_mni` is warped non-linearly, so that much of the anatomy that shows age is taken out: it is not the quasi-raw
    preparation of OpenBHB (affine), and its contract says so. Heads are defaced.
    """

    name: ClassVar[str] = "ukb"
    modalities: ClassVar[dict[str, str]] = {
        "brain_mni": "skull-stripped T1 brains, warped to MNI152 by UK Biobank (182x218x182, 1 mm)",
        "brain": "skull-stripped T1 brains, native space",
        "head": "whole T1 heads, defaced, native space",
    }
    Options: ClassVar[type] = Options

    def table(self) -> CohortTable:
        zips, others = self._zips()
        people, nobody = read_people(self._tables())
        withdrawn = self.withdrawn_people()["participant_id"]
        rows = zips.merge(people, on=["participant_id", "session_id"], how="left", indicator="listed")
        absent = rows["listed"] == "left_only"
        rows["reason"] = rows["reason"].mask(absent, "no row of this person and visit in the tables")
        rows = pd.concat([rows, others], ignore_index=True)
        rows["reason"] = rows["reason"].mask(rows["participant_id"].isin(withdrawn), WITHDRAWN)
        fine = rows["reason"].isna()
        rows.loc[fine, "reason"] = self._faults(rows.loc[fine, "path"])
        rows = rows.drop(columns=["listed", *(name for name in EXTRA if rows[name].isna().all())])
        rows = rows.assign(cohort=self.name, run="")
        left_out = pd.concat([rows[rows["reason"].notna()], nobody.assign(cohort=self.name)])
        kept = rows[rows["reason"].isna()].drop(columns="reason")
        return finish_table(kept, source=str(self.root), dropped=left_out)

    def without_scan(self) -> list[str]:
        """People with an imaging visit in the tables, not withdrawn, of whom there is no zip."""
        people, _ = read_people(self._tables())
        known = {*self._zips()[0]["participant_id"], *self.withdrawn_people()["participant_id"]}
        return sorted(set(people["participant_id"]) - known)

    def withdrawn_people(self) -> pd.DataFrame:
        """cohort and participant_id of everybody on the withdrawal lists here: what `withdraw` takes."""
        people = withdrawn_people(find_withdrawals(self.root, self.options.withdrawn)[0], self.name)
        wrong = people.loc[~people["participant_id"].str.fullmatch(r"-?\d+"), "participant_id"]
        for word in wrong:
            raise DataError(f"{self.root}: withdrawal lists hold {word!r}: expected one eid, a number, a line")
        people["participant_id"] = plain_eid(people["participant_id"])
        return people.drop_duplicates(ignore_index=True)

    def notes(self) -> list[str]:
        """Which withdrawal lists were read, and how many people each names."""
        lists, strange = find_withdrawals(self.root, self.options.withdrawn)
        read = [f"{os.path.relpath(file, self.root)} ({len(withdrawn_people([file], self.name))})" for file in lists]
        lines = [f"called like a withdrawal list, not read: {file}; save it as CSV" for file in strange]
        if not read:
            none = f"no withdrawal list found below {self.root}: name it with data.options.withdrawn"
            return [none, *lines]
        return [f"withdrawal lists read: {', '.join(read)}", *lines]

    def contract(self) -> InputContract:
        if self.modality != "brain_mni":
            return native_contract(self.modality, self.spacing_mm)
        return replace(self._grid(), intensity=SCALED)

    def read(self, path: str) -> np.ndarray:
        image = self._image(path)
        if self.modality != "brain_mni":
            return read_native(image, self.spacing_mm, f"{self.root / path}")
        volume = read_prepared(image, self._grid(), f"{self.root / path}")
        try:
            return scale_foreground(volume)
        except DataError as error:
            raise DataError(f"{self.root / path}: {error}") from error

    def _image(self, path: str) -> nib.Nifti1Image:
        file, member = split_locator(path)
        name = f"{self.root / path}"
        return load_nifti_bytes(gunzip(read_member(self.root / file, member), name), name)

    def _tables(self) -> list[Path]:
        return find_tables(self.root, self.options.tables)

    def _zips(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """participant_id, session_id and path of one zip a visit; and of those left out, each with its reason."""
        rows, left_out = [], []
        seen: dict[tuple[str, str], str] = {}
        for file in walk(self.root):
            match = _ZIP.match(file.rpartition("/")[2])
            if match is None:
                continue
            person, instance, index = match.groups()
            person = person.lstrip("0") or "0"
            row, first = (person, instance, f"{file}!{MEMBERS[self.modality]}"), seen.get((person, instance))
            if "!" in file or "#" in file:
                left_out.append((*row, "path holds ! or #, which have a meaning here: rename the folder"))
            elif index != "0":
                left_out.append((*row, f"array index {index}: expected 0, one scan a visit"))
            elif first is not None:
                left_out.append((*row, f"second zip of this person and visit, after {first}"))
            else:
                seen[person, instance] = file
                rows.append(row)
        if not rows:
            raise DataError(f"{self.root}: no zip here or below; expected names like 1000011_20252_2_0.zip")
        columns = ["participant_id", "session_id", "path"]
        others = pd.DataFrame(left_out, columns=[*columns, "reason"], dtype="string")
        return pd.DataFrame(rows, columns=columns, dtype="string"), others

    def _faults(self, locators: Iterable[str]) -> list[str | None]:
        """For each locator why its zip cannot give the member, or None; reads directories of zips only."""
        paths = list(locators)
        blocks = [paths[start : start + _BLOCK] for start in range(0, len(paths), _BLOCK)]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda block: [self._fault(path) for path in block], blocks)
            return list(itertools.chain.from_iterable(found))

    def _fault(self, path: str) -> str | None:
        name, member = split_locator(path)
        file = Path(self.root, name)
        try:
            return None if has_member(file, member) else f"zip without {member}"
        except DataError as error:
            return str(error).removeprefix(f"{file}: ")

    def _grid(self) -> InputContract:
        """The grid of `brain_mni`, from the header of the first zip that can be read."""
        if self._known_grid is None:
            self._known_grid = self._find_grid()
        refuse_spacing(self.spacing_mm, self._known_grid)
        return self._known_grid

    _known_grid: InputContract | None = None

    def _find_grid(self) -> InputContract:
        member = MEMBERS[self.modality]
        zips, _ = self._zips()
        zips = zips[~zips["participant_id"].isin(self.withdrawn_people()["participant_id"])]
        problem = f"no zip holds {member}"
        with_member = (path for path in zips["path"] if self._fault(path) is None)
        for path in itertools.islice(with_member, _TRIED):
            try:
                image = self._image(path)
            except DataError as error:
                problem = str(error)
                continue
            return grid_contract("ukb_brain_mni", PREPROCESSING, image.shape, image.affine, f"{self.root / path}")
        raise DataError(f"{self.root}: expected one readable {member} among {len(zips)} zips; last: {problem}")
