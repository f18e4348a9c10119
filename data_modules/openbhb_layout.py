"""What OpenBHB publishes: file names, grids, masks, region counts, and its sheets turned into canonical columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd

from brainage.config import nearest
from brainage.data.table import read_tsv
from brainage.errors import DataError
from brainage.imaging.quality_limits import PUBLISHED


class Volume(NamedTuple):
    file: str  # end of the file name after sub-<id>_
    template: str  # in resource/: its grid, and with `threshold` the mask of the challenge form
    threshold: float
    voxels: int  # inside the published mask
    shape: tuple[int, int, int]  # published grid, axes LAS
    spacing_mm: float


class Regions(NamedTuple):
    file: str
    measures: int
    regions: int
    labels: str  # in resource/: one region name a line
    name: str


VOLUMES = {
    "vbm": Volume(
        "preproc-cat12vbm_desc-gm_T1w.npy", "cat12vbm_space-MNI152_desc-gm_TPM.nii.gz", 0.05, 519945,
        (121, 145, 121), 1.5,
    ),
    "quasiraw": Volume(
        "preproc-quasiraw_T1w.npy", "quasiraw_space-MNI152_desc-brain_T1w.nii.gz", 0.0, 1827095,
        (182, 218, 182), 1.0,
    ),
}  # fmt: skip
REGIONS = {
    "vbm_roi": Regions("preproc-cat12vbm_desc-gm_ROI.npy", 1, 284, "cat12vbm_labels.txt", "cat12vbm_roi"),
    "desikan": Regions(
        "preproc-freesurfer_desc-desikan_ROI.npy", 7, 68, "freesurfer_atlas-desikan_labels.txt", "freesurfer_desikan"
    ),
    "destrieux": Regions(
        "preproc-freesurfer_desc-destrieux_ROI.npy", 7, 148,
        "freesurfer_atlas-destrieux_labels.txt", "freesurfer_destrieux",
    ),
}  # fmt: skip
XHEMI_COLUMNS = 8 * 163842  # surface block of the challenge form, not read here
PUBLISHED_ORIGIN_MM = (90.0, -126.0, -72.0)
MEASURES = (
    "area", "grey_volume", "thickness_mean", "thickness_sd", "mean_curvature", "gaussian_curvature",
    "intrinsic_curvature",
)  # fmt: skip
SPLIT_NAMES = {"train": "train", "internal_test": "test_internal", "external_test": "test_external"}
NUMBERS = {  # extra columns: published name -> ours
    "tiv": "tiv_ml", "csfv": "csf_ml", "gmv": "gm_ml", "wmv": "wm_ml", "magnetic_field_strength": "field_tesla",
}  # fmt: skip
QUALITY = {  # column of qc.tsv -> ours; limits are brainage.imaging.quality_limits.PUBLISHED
    "cat12vbm-iqr": "qc_iqr", "cat12vbm-ncr": "qc_ncr", "reconall-euler": "qc_euler", "quasiraw-corr": "qc_corr",
}  # fmt: skip


def canonical_rows(sheet: pd.DataFrame, file: Path) -> pd.DataFrame:
    """Rows with our column names and codes, and `published_split`; DataError naming the row of an unknown split."""
    for row, split in enumerate(sheet["split"]):
        if split not in SPLIT_NAMES:
            raise DataError(f"{file}: row {row + 1}: split {split!r}: expected one of {', '.join(SPLIT_NAMES)}")
    rows = pd.DataFrame(
        {
            "cohort": "openbhb",
            "participant_id": sheet["participant_id"],
            "session_id": "1",
            "run": "",
            "site": sheet["siteXacq"] if "siteXacq" in sheet else sheet["site"],
            "age_years": sheet["age"],
            "visit_years": 0.0,
            "published_split": sheet["split"],
        }
    )
    if "sex" in sheet:
        rows["sex"] = sheet["sex"].str.lower().replace({"male": "M", "female": "F"})
    # every person of OpenBHB is a healthy control by inclusion; another word is kept apart, not guessed at
    label = sheet["diagnosis"] if "diagnosis" in sheet else pd.Series("control", index=sheet.index, dtype="string")
    rows["diagnosis"] = label.mask(label.notna(), "other").mask(
        label.str.contains("control", case=False).fillna(False).astype(bool), "CN"
    )
    for name, ours in (("study", "study"), ("acquisition_setting", "acquisition")):
        if name in sheet:
            rows[ours] = sheet[name]
    for name, ours in NUMBERS.items():
        if name in sheet:
            rows[ours] = pd.to_numeric(sheet[name], errors="coerce")
    return rows


def quality_rows(file: Path) -> pd.DataFrame:
    """participant_id, qc_iqr, qc_ncr, qc_euler, qc_corr and qc_pass (1, 0, or NaN where a value is missing)."""
    sheet = read_tsv(file).drop_duplicates()
    require_columns(sheet, ("participant_id", *QUALITY), file)
    for person in sheet.loc[sheet["participant_id"].duplicated(), "participant_id"]:
        raise DataError(f"{file}: participant {person} has several rows that differ; keep the right one")
    rows = pd.DataFrame({"participant_id": sheet["participant_id"]})
    for name, ours in QUALITY.items():
        rows[ours] = pd.to_numeric(sheet[name], errors="coerce")
    good = pd.Series(True, index=sheet.index)
    for limit in PUBLISHED:
        good &= (rows[limit.column] > limit.low) & (rows[limit.column] < limit.high)
    known = rows[list(QUALITY.values())].notna().all(axis=1)
    return rows.assign(qc_pass=good.astype("float64").where(known))


def require_columns(sheet: pd.DataFrame, names: tuple[str, ...], file: Path) -> None:
    """Raise DataError naming the file, the first missing column and the nearest present one."""
    for name in names:
        if name not in sheet:
            raise DataError(f"{file}: column {name!r} missing{nearest(name, list(sheet.columns))}")


def stored_grid(volume: Volume, template: Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape (three axes) and 4x4 affine of the stored arrays: the template's header, else the published LAS grid."""
    if template.is_file():
        image = _template_image(template)
        x, y, z = image.shape[:3]
        return (x, y, z), image.affine
    affine = np.diag([-volume.spacing_mm, volume.spacing_mm, volume.spacing_mm, 1.0])
    affine[:3, 3] = PUBLISHED_ORIGIN_MM
    return volume.shape, affine


def mask_of(volume: Volume, template: Path) -> np.ndarray:
    """Boolean (three axes): voxels of the template above the published threshold; channel 0 of a 4-D template."""
    image = _template_image(template)
    try:
        values = image.get_fdata(dtype=np.float32, caching="unchanged")
    except Exception as error:
        raise DataError(f"{template}: damaged template ({type(error).__name__}: {error}); download it again") from error
    return (values[..., 0] if values.ndim == 4 else values) > volume.threshold


def load_array(file: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """The .npy array; DataError naming the file when it is absent or damaged."""
    if not file.is_file():
        raise DataError(f"{file}: file not found")
    try:
        return np.load(file, mmap_mode=mmap_mode)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{file}: damaged or no .npy file ({error}); download it again") from error


def _template_image(template: Path) -> Any:
    try:
        image: Any = nib.load(template)
    except Exception as error:
        raise DataError(f"{template}: damaged template ({type(error).__name__}: {error}); download it again") from error
    if len(image.shape) not in (3, 4):
        raise DataError(f"{template}: expected a template of three axes, found shape {image.shape}")
    return image
