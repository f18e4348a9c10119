"""Any BIDS dataset: raw or derivatives, one session or many, with its participants.tsv and sessions.tsv.

`root` is the dataset, or the folder of one pipeline (then `participants_file` says where the people are). Images are
known by what their names say (`bids_images.FORMS`), people and ages by the tables (`bids_people`, `bids_visits`), and
`data.options` (`bids_options`) names what differs. A wide table gives its waves by name:

    data: {cohort: bids, root: ..., modality: head,
           options: {sessions: {wave1: {age_years: AgeMRI_W1}, wave2: {age_years: AgeMRI_W2, visit_years: MRIW1toW2}}}}

Keys: participant_id and session_id as the tables write them, without sub- and ses-; names of files are matched to them
as written, else in other letter case, else without leading zeros. `site` is the tables' column (site, institution,
centre, scanner), or with `sidecars` institution, manufacturer and station; a dataset that says nothing is one site.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import ClassVar

import nibabel as nib
import numpy as np
import pandas as pd

from brainage.data.table import CohortTable, finish_table
from brainage.errors import DataError
from brainage.imaging.contract import InputContract
from data_modules.bids_images import distinct_images, find_images, session_times, sidecar_facts
from data_modules.bids_join import join_scans, with_table_ids
from data_modules.bids_options import Options, check_options
from data_modules.bids_people import KEYS, Tables, read_tables
from data_modules.bids_regions import Regions
from data_modules.bids_visits import NOT_EXTRA, complete_visits
from data_modules.openbhb_layout import VOLUMES, load_array, stored_grid
from data_modules.reader import CohortReader
from data_modules.volumes import (
    NATIVE,
    PREPARED,
    common_contract,
    native_contract,
    prepared_contract,
    read_native,
    read_prepared,
    refuse_spacing,
)


class BIDS(CohortReader):
    """One modality of a BIDS dataset. Extra columns: mmse, cdr, apoe4, education_years, scanner, manufacturer,
    field_tesla and diagnosis_detail where a table has them, and whatever `data.options.columns` names.
    """

    name: ClassVar[str] = "bids"
    Options: ClassVar[type] = Options
    modalities: ClassVar[dict[str, str]] = {
        **NATIVE,
        **{name: kind.help for name, kind in PREPARED.items()},
        "roi": "regional values from one table (data.options.table_file)",
    }

    def table(self) -> CohortTable:
        scans = with_table_ids(self._scans(), self._known)
        visits = complete_visits(self._tables, self.options, self._imaged(scans))
        rows, left_out = join_scans(scans, visits, one_run=self.options.one_run)
        if not self._tables.has_site:
            rows = rows.assign(site=self.cohort_name)
        if self.options.sidecars and self.modality != "roi":
            rows = self._with_sidecars(rows)
        return self._finish(rows, left_out)

    def people(self) -> CohortTable:
        """The longitudinal table of people and sessions as the tables have it, whether or not there are images.

        `path` names the row (`participants.tsv#3`), which `read` cannot read. People whom no table gives sessions have
        one with an empty session_id.
        """
        visits = complete_visits(self._tables, self.options)
        bad = visits["reason"].notna()
        rows = visits[~bad].assign(path=visits["source"], run="")
        if not self._tables.has_site:
            rows = rows.assign(site=self.cohort_name)
        return self._finish(rows, visits[bad])

    def without_scan(self) -> list[str]:
        """People of the tables of whom there is no image, or no row of the table of regional values."""
        return sorted(self._known - set(with_table_ids(self._scans(), self._known)["participant_id"].dropna()))

    def notes(self) -> list[str]:
        """How many later visits the one diagnosis of the table of people could not, or was told to, speak for."""
        scans = with_table_ids(self._scans(), self._known)
        later = int(complete_visits(self._tables, self.options, self._imaged(scans))["one_diagnosis"].sum())
        if not later:
            return []
        what = "have that of the first" if self.options.one_diagnosis == "all" else "have none"
        return [
            f"{later} later sessions of people with one diagnosis in the table of people {what} "
            f"(data.options.one_diagnosis={self.options.one_diagnosis})"
        ]

    def contract(self) -> InputContract:
        return self._contract

    def read(self, path: str) -> np.ndarray:
        if self.modality == "roi":
            return self._regions.sample(path)
        file = self.root / path
        if self.modality in NATIVE:
            return read_native(file, self.spacing_mm)
        if file.suffix != ".npy":
            return read_prepared(file, self._contract)
        shape, affine = self._array_grid
        values = load_array(file)
        if tuple(n for n in values.shape if n > 1) != shape or not np.issubdtype(values.dtype, np.number):
            raise DataError(f"{file}: damaged: expected {shape} numbers, found {values.dtype} {values.shape}")
        if not np.isfinite(values).all():
            raise DataError(f"{file}: holds values that are not finite; prepare the volume again")
        return read_prepared(
            nib.Nifti1Image(values.reshape(shape).astype(np.float32), affine), self._contract, str(file)
        )

    @cached_property
    def cohort_name(self) -> str:
        """`cohort` of the table: data.options.cohort_name, the dataset's Name in plain letters, or the folder's."""
        described = self.root / "dataset_description.json"
        name = self.options.cohort_name
        if not name and described.is_file():
            try:
                name = str(json.loads(described.read_text(encoding="utf-8-sig")).get("Name", ""))
            except (ValueError, AttributeError) as error:
                raise DataError(f"{described}: not readable as a JSON object ({error})") from error
        return _plain_word(name) or _plain_word(self.root.resolve().name) or "bids"

    @cached_property
    def _tables(self) -> Tables:
        check_options(self.options)
        return read_tables(self.root, self.options)

    @cached_property
    def _regions(self) -> Regions:
        return Regions(self.root, self.options)

    @property
    def _known(self) -> set[str]:
        """Everybody whom a table names."""
        return {*self._tables.people["participant_id"], *self._tables.visits["participant_id"]}

    @cached_property
    def _contract(self) -> InputContract:
        if self.modality == "roi":
            names = self._regions.features()
            return InputContract("roi", "vector", (len(names),), intensity="as published", features=names)
        if self.modality in NATIVE:
            return native_contract(self.modality, self.spacing_mm)
        contract = self._prepared_contract()
        refuse_spacing(self.spacing_mm, contract)
        return contract

    def _prepared_contract(self) -> InputContract:
        """The template's grid for arrays, else the commonest one of a few headers."""
        paths = find_images(self.root, self.modality, self.options)["path"]
        if paths.iloc[0].endswith(".npy"):
            return prepared_contract(self.modality, *self._array_grid, source=str(self.root))
        return common_contract(self.modality, [self.root / path for path in paths])

    @cached_property
    def _array_grid(self) -> tuple[tuple[int, int, int], np.ndarray]:
        """Shape and affine of .npy maps, which carry no header."""
        return stored_grid(VOLUMES[self.modality], self.root / (self.options.template_file or "no template"))

    def _scans(self) -> pd.DataFrame:
        """participant_id and session_id as files name them, run, path, scan_reason."""
        if self.modality == "roi":
            return self._regions.rows().rename(columns={"reason": "scan_reason"})
        return distinct_images(find_images(self.root, self.modality, self.options))

    def _imaged(self, scans: pd.DataFrame) -> pd.DataFrame:
        """participant_id as in the tables, session_id, acq_time (of people with several) of sessions no table names."""
        with_visits = scans["participant_id"].isin(self._tables.visits["participant_id"])
        there = scans[scans["participant_id"].notna() & scans["scan_reason"].isna() & ~with_visits].drop_duplicates(
            KEYS
        )
        several = there[there.duplicated("participant_id", keep=False)]
        times = session_times(self.root, several.assign(participant_id=several["label"]))
        return there[KEYS].assign(acq_time=times.reindex(there.index))

    def _with_sidecars(self, rows: pd.DataFrame) -> pd.DataFrame:
        said = pd.DataFrame([sidecar_facts(self.root, path) for path in rows["path"]], index=rows.index)
        for name in said:
            there = said[name].astype("float64" if name == "field_tesla" else "string")
            if name != "site" or not self._tables.has_site:
                rows = rows.assign(**{name: rows[name].fillna(there) if name in rows and name != "site" else there})
        return rows

    def _finish(self, rows: pd.DataFrame, left_out: pd.DataFrame) -> CohortTable:
        dropped = pd.concat([self._tables.left_out, left_out], ignore_index=True).assign(cohort=self.cohort_name)
        rows = rows.drop(columns=[*NOT_EXTRA, "joined", "label", "scan_reason"], errors="ignore")
        return finish_table(rows.assign(cohort=self.cohort_name), source=str(self.root), dropped=dropped)


def _plain_word(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
