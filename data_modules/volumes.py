"""What volumes are called and how they are read, in every cohort alike: equal preparation gives equal contracts.

Prepared volumes lie on a grid of MNI152 space already (CAT12 grey matter, quasi-raw brains); native ones are reoriented
by their header and resampled onto `model_grid`, centred, never mirrored, rotated or scaled. So an encoder trained on
OpenBHB's grey matter maps takes ADNI's, and one trained on IXI's brains takes those of OASIS-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from brainage.errors import ConfigError, DataError
from brainage.imaging.contract import InputContract
from brainage.imaging.preprocess import load_nifti, model_grid, resample_to_grid, scale_foreground

DEFAULT_SPACING_MM = 2.0  # of native volumes
GRIDS_LOOKED_AT = 5
_TOLERANCE_MM = 1e-3


class Prepared(NamedTuple):
    name: str  # InputContract.modality
    preprocessing: str
    help: str


PREPARED = {
    "vbm": Prepared("cat12vbm_gm", "CAT12 modulated grey matter", "modulated grey matter maps of CAT12, MNI152"),
    "quasiraw": Prepared(
        "quasiraw",
        "bias field corrected, skull stripped, affine to MNI152",
        "skull-stripped T1 brains, affine to MNI152",
    ),
}
NATIVE = {"brain": "skull-stripped T1 brains, native space", "head": "whole T1 heads, native space"}


def prepared_contract(
    modality: str, shape: Sequence[int], affine: np.ndarray, source: str, *, space: str = "MNI152"
) -> InputContract:
    """Contract of a prepared modality stored with this shape and affine, in RAS order.

    Raises DataError naming `source` when the axes are not along left-right, back-front and down-up.
    """
    kind = PREPARED[modality]
    return grid_contract(kind.name, kind.preprocessing, shape, affine, source, space=space)


def grid_contract(
    name: str,
    preprocessing: str,
    shape: Sequence[int],
    affine: np.ndarray,
    source: str,
    *,
    space: str = "MNI152",
) -> InputContract:
    """Contract of volumes that lie on one grid as they are published; see `prepared_contract`."""
    axes = nib.io_orientation(affine)
    if np.isnan(axes).any():
        raise DataError(f"{source}: the affine of its header has an axis of length 0; convert the scan again")
    ras = affine @ nib.orientations.inv_ornt_aff(axes, shape)
    spacing = np.diag(ras)[:3]
    if not np.allclose(ras[:3, :3], np.diag(spacing), atol=1e-4):
        raise DataError(f"{source}: expected axes along left-right, back-front and down-up, found {affine.tolist()}")
    return InputContract(
        modality=name,
        kind="volume",
        shape=(1, *(shape[int(axis)] for axis in np.argsort(axes[:, 0]))),
        space=space,
        spacing_mm=tuple(spacing.tolist()),
        origin_mm=tuple(ras[:3, 3].tolist()),
        axes="RAS",
        intensity="as published",
        preprocessing={"pipeline": preprocessing},
    )


def contract_like(modality: str, file: Path) -> InputContract:
    """`prepared_contract` on the grid of one NIfTI file of the cohort; opens its header only."""
    shape, affine = nifti_grid(file)
    return prepared_contract(modality, shape, affine, str(file))


def common_contract(modality: str, files: Sequence[Path]) -> InputContract:
    """`contract_like` most of a few of the files, so that one strange one does not decide; opens headers only.

    Raises what the first of them raises where none can be read.
    """
    found: list[InputContract] = []
    refused: list[DataError] = []
    for place in np.unique(np.linspace(0, len(files) - 1, GRIDS_LOOKED_AT).round().astype(int)):
        try:
            found.append(contract_like(modality, files[int(place)]))
        except DataError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return max(found, key=lambda one: sum(not one.differences(other) for other in found))


def refuse_spacing(asked_mm: float, contract: InputContract) -> None:
    """ConfigError when `data.spacing_mm` asks for another voxel size than volumes have that lie on a grid already."""
    if asked_mm and not np.allclose(contract.spacing_mm, asked_mm, atol=_TOLERANCE_MM):
        raise ConfigError(
            f"data.spacing_mm={asked_mm}: {contract.modality} has its own grid of {list(contract.spacing_mm)} mm; "
            "set it to 0"
        )


def nifti_grid(file: Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape (three axes) and affine of a NIfTI file, from its header; DataError where there is none."""
    try:
        image: Any = nib.load(file)
    except Exception as error:
        raise DataError(
            f"{file}: damaged or no NIfTI file ({' '.join(str(error).split())[:160]}); download it again"
        ) from error
    if len(image.shape) < 3:
        raise DataError(f"{file}: expected a volume of three axes, found shape {image.shape}")
    x, y, z = image.shape[:3]
    return (x, y, z), image.affine


def read_prepared(image: Path | nib.Nifti1Image, contract: InputContract, name: str = "") -> np.ndarray:
    """float32 (1, X, Y, Z) RAS of a volume that must lie on the contract's grid already.

    `image` is a file, or what `load_nifti` or `load_nifti_bytes` gave, with its `name`. Raises DataError naming the
    file when it is damaged, or its axes, shape, spacing or origin are not those of the contract.
    """
    if isinstance(image, Path):
        name = str(image)
        image = load_nifti(image)
    found = grid_contract(contract.modality, "", image.shape, image.affine, name, space=contract.space)
    expected = contract.to_dict() | {"preprocessing": {"pipeline": ""}}
    differences = InputContract.from_dict(expected).differences(found)
    if differences:
        raise DataError(
            f"{name}: not on the grid of the other volumes: {'; '.join(differences)}; prepare it as the others were"
        )
    ras = nib.as_closest_canonical(image)
    return np.ascontiguousarray(ras.dataobj, dtype=np.float32)[None]


def native_contract(modality: str, spacing_mm: float = 0.0) -> InputContract:
    """Contract of `brain` or `head` volumes on `model_grid(spacing_mm)` (0: DEFAULT_SPACING_MM)."""
    spacing_mm = spacing_mm or DEFAULT_SPACING_MM
    shape, origin = model_grid(spacing_mm)
    return InputContract(
        modality=modality,
        kind="volume",
        shape=(1, *shape),
        space="native_centred",
        spacing_mm=(spacing_mm,) * 3,
        origin_mm=origin,
        axes="RAS",
        intensity="divided by the 99th percentile of the tissue",
        preprocessing={"resampling": "linear, brain's centre on the grid's centre"},
    )


def read_native(image: Path | nib.Nifti1Image, spacing_mm: float = 0.0, name: str = "") -> np.ndarray:
    """float32 (1, X, Y, Z) RAS of a scan on the grid of `native_contract`; DataError naming the file if damaged."""
    if isinstance(image, Path):
        name = str(image)
        image = load_nifti(image)
    spacing_mm = spacing_mm or DEFAULT_SPACING_MM
    try:
        return scale_foreground(resample_to_grid(image, model_grid(spacing_mm)[0], spacing_mm))[None]
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
