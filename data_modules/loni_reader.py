"""What readers of LONI cohorts share: volumes of the download tree, and prepared ones that lie beside it as BIDS."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import pandas as pd

from brainage.errors import DataError
from brainage.imaging.contract import InputContract
from data_modules.bids_files import list_files
from data_modules.loni import one_each
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

# What prepared files are called: as OpenBHB names them, as a BIDS derivative, as CAT12 itself does.
BIDS_NAMES: dict[str, tuple[dict[str, Any], ...]] = {
    "vbm": ({"desc": "gm"}, {"prefix": "mwp1"}),
    "quasiraw": ({"entities": {"preproc": "quasiraw"}}, {"desc": "quasiraw"}),
}


class LoniReader(CohortReader):
    """Modalities, contract and samples; a cohort adds its table."""

    modalities: ClassVar[dict[str, str]] = {**NATIVE, **{name: kind.help for name, kind in PREPARED.items()}}
    person: ClassVar[re.Pattern[str]]  # how the cohort's folders of people are called

    def contract(self) -> InputContract:
        return self._contract

    def read(self, path: str) -> np.ndarray:
        file = self.root / path
        if self.modality in NATIVE:
            return read_native(file, self.spacing_mm)
        if file.suffix != ".npy":
            return read_prepared(file, self._contract)
        shape, affine = stored_grid(VOLUMES[self.modality], self._template)
        values = load_array(file)
        if values.size != np.prod(shape) or values.shape[-3:] != shape:
            raise DataError(f"{file}: damaged: expected shape (1, 1, {', '.join(map(str, shape))}), "
                            f"found {values.shape}")  # fmt: skip
        if not np.isfinite(values).all():
            raise DataError(f"{file}: holds voxels that are not finite; prepare the volume again")
        image = nib.Nifti1Image(values.reshape(shape).astype(np.float32, copy=False), affine)
        return read_prepared(image, self._contract, str(file))

    def prepared_files(self) -> pd.DataFrame:
        """Columns label and session (of sub- and ses-), run, path: prepared files of this modality; DataError if none.

        A NIfTI file is taken before an array of the same session, since it has a header.
        """
        found = [list_files(self.root, suffix="T1w", **names) for names in BIDS_NAMES[self.modality]]
        files = pd.concat(found, ignore_index=True)
        if files.empty:
            raise DataError(
                f"{self.root}: no {self.modality} file found; expected for example "
                f"derivatives/sub-<id>/ses-M012/sub-<id>_ses-M012_{VOLUMES[self.modality].file.removesuffix('.npy')}"
                ".nii.gz"
            )
        files = files.rename(columns={"participant_id": "label", "session_id": "session"})
        files["array"] = files["path"].str.endswith(".npy")
        files = files.sort_values(["label", "session", "array", "run", "path"], ignore_index=True)
        return files[["label", "session", "run", "path"]]

    def one_a_session(self, scans: pd.DataFrame) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
        """One scan of each person and session, and the others with their reason; see `one_each` for images of the tree.
        Of prepared files the first in the order of `prepared_files` is kept."""
        by = ["participant_id", "session_id"]
        if self.modality in NATIVE:
            scans, same = one_each(scans, ["participant_id", "acquired"], "same acquisition as")
            scans, second = one_each(scans, by, "second T1 of this session, after")
            return scans, [same, second]
        first = scans.groupby(by)["path"].transform("first")
        again = scans["path"] != first
        return scans[~again], [scans.assign(reason=f"second {self.modality} of this session, after " + first)[again]]

    @cached_property
    def _contract(self) -> InputContract:
        if self.modality in NATIVE:
            return native_contract(self.modality, self.spacing_mm)
        contract = self._prepared_contract()
        refuse_spacing(self.spacing_mm, contract)
        return contract

    def _prepared_contract(self) -> InputContract:
        """The template's grid, else the commonest one of a few headers, else the published one."""
        if not self._template.is_file():
            paths = self.prepared_files()["path"]
            with_header = [self.root / path for path in paths[~paths.str.endswith(".npy")]]
            if with_header:
                return common_contract(self.modality, with_header)
        shape, affine = stored_grid(VOLUMES[self.modality], self._template)
        return prepared_contract(self.modality, shape, affine, str(self._template))

    @property
    def _template(self) -> Path:
        return self.root / "resource" / VOLUMES[self.modality].template
