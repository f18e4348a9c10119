"""IXI (brain-development.org): healthy people of three London hospitals; volumes as NIfTI, regions as one table.

`root` holds the files, or folders of them. Volumes are known by their name, `IXI012-HH-1211-T1<ending>.nii.gz`; the
ending says what is shown (ENDINGS). Ages come from every demographic sheet there (CSV or TSV; see `ixi_sheets`), which
has to be exported from IXI.xls. `site` is the hospital, by the sheet or by file names; each person has one scan.

Volumes stay in native space: reoriented to RAS by their header, resampled to `model_grid(spacing_mm)` (2 mm unless the
experiment says otherwise) with the centre of the brain on the centre of the grid, never mirrored, rotated or scaled.
IXI publishes no split.
"""

from __future__ import annotations

import re
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd

from brainage.data.table import CohortTable, finish_table
from brainage.errors import DataError
from brainage.imaging.contract import InputContract
from data_modules.ixi_sheets import REGIONS, folders, read_people, region_file, region_people, region_values
from data_modules.reader import CohortReader
from data_modules.volumes import NATIVE, native_contract, read_native

ENDINGS = {  # what follows -T1 in a file name -> what is shown
    "": "head", "_head": "head", "_ds": "head",
    "_brain": "brain", "_ds_brain": "brain",
    "_brain_mask": "labels", "_mask": "labels", "_seg": "labels", "_DLMUSE": "labels", "_ds_DLMUSE": "labels",
}  # fmt: skip
_IMAGE = re.compile(r"^(IXI\d{3})-(Guys|HH|IOP)-\d+-T1(.*?)\.nii(?:\.gz)?$")
_FIELD = re.compile(r"([\d.]+)\s*T\b")


class _Image(NamedTuple):
    participant_id: str
    hospital: str
    shows: str  # head, brain, labels, or unknown
    path: str


class _Found(NamedTuple):
    """What the sheets and the files say, before they are joined."""

    people: pd.DataFrame
    left_out: pd.DataFrame  # rows of the sheets
    scans: pd.DataFrame
    repeated: pd.DataFrame  # files, or rows of the table of regions, that are not used
    hospitals: dict[str, str]  # by the names of scans

    def without_scan(self) -> set[str]:
        named = {*self.people["participant_id"], *self.left_out["participant_id"]} - {""}
        return named - {*self.scans["participant_id"], *self.repeated["participant_id"]}


class IXI(CohortReader):
    """One modality of IXI. Extra columns: scanner, field_tesla (where a sheet names the scanner)."""

    name: ClassVar[str] = "ixi"
    modalities: ClassVar[dict[str, str]] = {
        **NATIVE,
        "thickness": "FreeSurfer cortical thickness of 68 Desikan regions",
        "dlmuse": "volumes of the regions of the MUSE atlas by DLMUSE, and of their sums",
    }

    def table(self) -> CohortTable:
        found = self._found()
        people, left_out, scans, repeated, hospitals = found
        rows = scans.merge(people, on="participant_id", how="left", indicator="sheet")
        unknown = rows[rows["sheet"] == "left_only"]
        ageless = rows[(rows["sheet"] == "both") & rows["age_reason"].notna()]
        rows = rows[(rows["sheet"] == "both") & rows["age_reason"].isna()]
        dropped = [
            left_out[~left_out["participant_id"].isin(found.without_scan())],
            repeated,
            unknown[["participant_id", "path"]].assign(reason="no usable row in the demographic sheets"),
            ageless[["participant_id", "path"]].assign(reason=ageless["age_reason"]),
        ]
        listed = pd.concat(dropped, ignore_index=True).assign(cohort="ixi", session_id="1", run="")
        return finish_table(_canonical(rows, hospitals), source=str(self.root), dropped=listed)

    def without_scan(self) -> list[str]:
        """People of the demographic sheets of whom no file or row of this modality is there."""
        return sorted(self._found().without_scan())

    def contract(self) -> InputContract:
        if self.modality in NATIVE:
            return native_contract(self.modality, self.spacing_mm)
        names, _ = region_values(region_file(self.root, self.modality), self.modality)
        regions = REGIONS[self.modality]
        return InputContract(regions.name, "vector", (len(names),), intensity=regions.unit, features=names)

    def read(self, path: str) -> np.ndarray:
        if self.modality in NATIVE:
            return read_native(self.root / path, self.spacing_mm)
        name, _, row = path.rpartition("#")
        file = self.root / name
        if not file.is_file():
            raise DataError(f"{file}: file not found")
        names, values = region_values(file, self.modality)
        if not row.isdecimal() or int(row) >= len(values):
            raise DataError(f"{file}: expected a row below {len(values)}, found {row!r}")
        sample = values[int(row)]
        if not np.isfinite(sample).all():
            region = names[int(np.flatnonzero(~np.isfinite(sample))[0])]
            what = REGIONS[self.modality].what
            raise DataError(f"{file}: row {int(row) + 1}: {what} of {region} is missing or no number")
        return sample.copy()

    def _found(self) -> _Found:
        people, left_out = read_people(self.root)
        images = self._images()
        scans, repeated = self._image_scans(images) if self.modality in NATIVE else self._region_scans()
        hospitals = {image.participant_id: image.hospital for image in images}
        if self.modality not in NATIVE:
            named = region_people(region_file(self.root, self.modality))
            hospitals |= {person: hospital for person, hospital in named if person and hospital}
        return _Found(people, left_out, scans, repeated, hospitals)

    def _images(self) -> list[_Image]:
        images = []
        for folder in folders(self.root):
            for file in sorted(folder.iterdir()):
                match = _IMAGE.match(file.name)
                if match:
                    path = file.relative_to(self.root).as_posix()
                    images.append(_Image(match[1], match[2], ENDINGS.get(match[3], "unknown"), path))
        return images

    def _image_scans(self, images: list[_Image]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """participant_id and path of the images of this modality, and the images left out with their reason."""
        kept: dict[str, str] = {}
        left_out = []
        for image in images:
            if image.shows == "unknown":
                known = ", ".join(repr(ending) for ending in ENDINGS)
                left_out.append(
                    (image.participant_id, image.path, f"name says neither head nor brain (known: {known})")
                )
            elif image.shows == self.modality and image.participant_id in kept:
                first = kept[image.participant_id]
                left_out.append(
                    (image.participant_id, image.path, f"second {self.modality} of this person, after {first}")
                )
            elif image.shows == self.modality:
                kept[image.participant_id] = image.path
        if not kept:
            endings = [ending for ending, shows in ENDINGS.items() if shows == self.modality]
            names = " or ".join(f"IXI012-HH-1211-T1{ending}.nii.gz" for ending in endings)
            raise DataError(
                f"{self.root}: no {self.modality} image here or one folder down; expected names like {names}"
            )
        columns = ["participant_id", "path"]
        return pd.DataFrame(kept.items(), columns=columns), pd.DataFrame(left_out, columns=[*columns, "reason"])

    def _region_scans(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """participant_id and path of the rows of the table of regions, and the rows left out with their reason."""
        file = region_file(self.root, self.modality)
        name = file.relative_to(self.root).as_posix()
        rows = pd.DataFrame({"participant_id": [person for person, _ in region_people(file)]}, dtype=object)
        rows["path"] = [f"{name}#{row}" for row in range(len(rows))]
        nobody = rows[rows["participant_id"].isna()].assign(reason="row without an IXI number")
        rows = rows[rows["participant_id"].notna()]
        again = rows["participant_id"].duplicated()
        second = rows[again].assign(reason="second row of this person, the first one is kept")
        return rows[~again], pd.concat([nobody, second])


def _canonical(rows: pd.DataFrame, hospitals: dict[str, str]) -> pd.DataFrame:
    """The columns of the canonical table; the hospital of a file name fills in where the sheet gives none."""
    by_name = rows["participant_id"].map(hospitals)
    field = rows["scanner"].astype("string").str.extract(_FIELD, expand=False)
    return pd.DataFrame(
        {
            "cohort": "ixi",
            "participant_id": rows["participant_id"],
            "session_id": "1",
            "run": "",
            "site": rows["hospital"].where(rows["hospital"].notna(), by_name),
            "age_years": rows["age"],
            "sex": rows["sex"],
            "diagnosis": "CN",  # IXI scanned healthy volunteers only
            "visit_years": 0.0,
            "path": rows["path"],
            "scanner": rows["scanner"],
            "field_tesla": pd.to_numeric(field).astype("float64"),
        }
    )
