"""OpenBHB (Dufumier et al., NeuroImage 2022): 5,330 healthy people, 71 sites; folder form and challenge form.

Folder form, known by its `participants.tsv`:
    participants.tsv  qc.tsv  resource/  {train,val}/derivatives/sub-<id>/ses-1/sub-<id>_preproc-<...>.npy
Challenge form, known by its `train.npy` (in the root or in `data/`): see `openbhb_challenge`.

Orientation. The arrays carry no header. Axes and grid are taken from the template of the same name in `resource/`
(published: LAS), so their first axis runs from right to left and `read` flips it: samples are RAS. Without a template
the published grids are assumed: quasi-raw 182x218x182, diag(-1, 1, 1), origin (90, -126, -72), read from the published
file; VBM 121x145x121, diag(-1.5, 1.5, 1.5), same origin, by inference from SPM's tissue maps. An array whose shape is
not its template's is refused as damaged.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import nibabel as nib
import numpy as np
import pandas as pd

from brainage.data.table import CohortTable, finish_table, read_tsv
from brainage.errors import DataError, LeakageError
from brainage.imaging.contract import InputContract
from data_modules.openbhb_challenge import Challenge
from data_modules.openbhb_layout import (
    MEASURES,
    REGIONS,
    SPLIT_NAMES,
    VOLUMES,
    Regions,
    Volume,
    canonical_rows,
    load_array,
    quality_rows,
    require_columns,
    stored_grid,
)
from data_modules.reader import CohortReader
from data_modules.volumes import prepared_contract, refuse_spacing


class OpenBHB(CohortReader):
    """One modality of OpenBHB. `site` is siteXacq (site x acquisition); every person has one scan, session 1.

    Extra columns: study, acquisition, tiv_ml, csf_ml, gm_ml, wm_ml, field_tesla, and with a qc.tsv also qc_iqr, qc_ncr,
    qc_euler, qc_corr and qc_pass (1: within all published limits, IQR and NCR < 4, Euler > -217, quasi-raw correlation
    > 0.5). Nobody is left out by quality.
    """

    name: ClassVar[str] = "openbhb"
    modalities: ClassVar[dict[str, str]] = {
        "vbm": "modulated grey matter maps of CAT12, 1.5 mm, MNI152",
        "quasiraw": "skull-stripped T1 brains, 1 mm, affine to MNI152",
        "vbm_roi": "284 grey matter and CSF volumes (CAT12, Neuromorphometrics)",
        "desikan": "FreeSurfer, 7 measures of 68 Desikan regions",
        "destrieux": "FreeSurfer, 7 measures of 148 Destrieux regions",
    }

    def table(self) -> CohortTable:
        rows, dropped = (self._challenge.rows(), None) if self._is_flat else self._folder_rows()
        return finish_table(rows.drop(columns="published_split"), source=str(self.root), dropped=dropped)

    def official_split(self) -> pd.DataFrame:
        """The published split. Its tests are both tests: a validation share has to be carved out of train."""
        rows = self._challenge.rows() if self._is_flat else self._participants()
        split = rows[["cohort", "participant_id"]].assign(split=rows["published_split"].map(SPLIT_NAMES))
        split = split.dropna().drop_duplicates(ignore_index=True)
        for person in split.loc[split["participant_id"].duplicated(), "participant_id"]:
            raise LeakageError(f"{self.root}: participant {person} is in two published splits; keep one of the rows")
        return split

    def contract(self) -> InputContract:
        if self._is_flat:
            self._challenge.check_columns()
        if self.modality in REGIONS:
            names = self._feature_names()
            return InputContract(
                REGIONS[self.modality].name, "vector", (len(names),), intensity="as published", features=names
            )
        shape, affine = self._grid
        contract = prepared_contract(self.modality, shape, affine, str(self._template))
        refuse_spacing(self.spacing_mm, contract)
        return contract

    def read(self, path: str) -> np.ndarray:
        values = self._challenge.read(path) if "#" in path else self._read_file(self.root / path)
        if self.modality in REGIONS:
            return values.reshape(-1)
        shape, affine = self._grid
        volume = nib.apply_orientation(values.reshape(shape), nib.io_orientation(affine))
        return np.ascontiguousarray(volume)[None]

    def _folder_rows(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Rows whose file exists, and the others with their reason; lists directories, opens no array."""
        rows = self._participants()
        file = self._published.file
        folders = {
            split: f"{'train' if split == 'train' else 'val'}/derivatives/sub-{{0}}/ses-1/sub-{{0}}_{file}"
            for split in SPLIT_NAMES
        }
        people = rows["participant_id"].fillna("")
        splits = rows["published_split"]
        rows["path"] = [folders[split].format(person) for person, split in zip(people, splits, strict=True)]
        exists = pd.Series([_listed(self.root / path) for path in rows["path"]], index=rows.index)
        if not exists.any():
            raise DataError(f"{self.root}: no {self.modality} file found; expected for example {rows['path'].iloc[0]}")
        missing = rows[~exists]
        return rows[exists], missing.assign(reason="file not found")

    def _participants(self) -> pd.DataFrame:
        file = self.root / "participants.tsv"
        if not file.is_file():
            raise DataError(
                f"{file}: not found; {self.root} is neither OpenBHB's folder form nor the challenge form (train.npy)"
            )
        sheet = read_tsv(file)
        require_columns(sheet, ("participant_id", "age", "sex", "siteXacq", "split"), file)
        rows = canonical_rows(sheet, file)
        if (self.root / "qc.tsv").is_file():
            rows = rows.merge(quality_rows(self.root / "qc.tsv"), on="participant_id", how="left")
        return rows

    def _read_file(self, file: Path) -> np.ndarray:
        if self.modality in REGIONS:
            expected: tuple[int, ...] = (1, REGIONS[self.modality].measures, REGIONS[self.modality].regions)
            source = "the published layout"
        else:
            expected = (1, 1, *self._grid[0])
            source = str(self._template) if self._template.is_file() else f"the published grid (no {self._template})"
        values = load_array(file)
        if values.shape != expected:
            raise DataError(f"{file}: damaged: expected shape {expected} of {source}, found {values.shape}")
        return values.astype(np.float32, copy=False)

    @property
    def _published(self) -> Volume | Regions:
        return VOLUMES[self.modality] if self.modality in VOLUMES else REGIONS[self.modality]

    @property
    def _is_flat(self) -> bool:
        return not (self.root / "participants.tsv").is_file() and bool(self._challenge.files)

    @cached_property
    def _challenge(self) -> Challenge:
        return Challenge(self.root, self.modality)

    @cached_property
    def _grid(self) -> tuple[tuple[int, int, int], np.ndarray]:
        return stored_grid(VOLUMES[self.modality], self._template)

    @property
    def _template(self) -> Path:
        return self.root / "resource" / VOLUMES[self.modality].template

    def _feature_names(self) -> tuple[str, ...]:
        """measure_region, measure by measure as the arrays are stored; region_001... where there is no label list."""
        regions = REGIONS[self.modality]
        labels = [f"region_{number + 1:03d}" for number in range(regions.regions)]
        file = self.root / "resource" / regions.labels
        if file.is_file():
            labels = file.read_text(encoding="utf-8").split()
            if len(labels) != regions.regions:
                raise DataError(f"{file}: expected {regions.regions} region names, found {len(labels)}")
        if regions.measures == 1:
            return tuple(labels)
        return tuple(f"{measure}_{label}" for measure in MEASURES for label in labels)


def _listed(file: Path) -> bool:
    """Whether a directory listing holds the file: one request a session, where servers are slow to stat each file."""
    try:
        return file.name in os.listdir(file.parent)
    except (FileNotFoundError, NotADirectoryError):
        return False
