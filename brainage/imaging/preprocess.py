"""NIfTI volumes on a model grid: axes from the header's affine, resampled, centred, never mirrored.

Legend: X Y Z voxels with X to the right, Y to the front, Z up (RAS); millimetres are RAS coordinates of the image's own
header. Nothing is registered: rotation and size of a head stay as they were scanned, only its place changes. Every
step takes the affine from the file, so an array's storage order (PSR, LAS, oblique) cannot change the anatomy.
"""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from brainage.errors import ConfigError, DataError

MNI152_MM = (182.0, 218.0, 182.0)  # field of view of the common MNI152 grids
BRAIN_HEIGHT_MM = 150.0  # from the vertex down; below it heads hold face and neck, which differ in how much was scanned
FIELD_OF_VIEW_MM = (2.0, 2000.0)  # of any head; metres and microns lie far outside
_FOREGROUND = 0.1  # share of a bright voxel's value above which a voxel counts as tissue
_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))


def model_grid(spacing_mm: float) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape (X, Y, Z) and origin (RAS mm of voxel 0) of the isotropic grid over MNI152's field of view, centred on 0.

    >>> model_grid(1.0)
    ((182, 218, 182), (-90.5, -108.5, -90.5))
    >>> model_grid(4.0)[0]
    (46, 55, 46)
    """
    if not spacing_mm > 0:
        raise ConfigError(f"data.spacing_mm={spacing_mm}: expected the edge of a voxel in mm, above 0")
    x, y, z = (math.ceil(edge / spacing_mm - 1e-6) for edge in MNI152_MM)
    return (x, y, z), (-(x - 1) / 2 * spacing_mm, -(y - 1) / 2 * spacing_mm, -(z - 1) / 2 * spacing_mm)


def load_nifti(path: str | os.PathLike) -> nib.Nifti1Image:
    """One 3D volume as float32 with its stored scaling applied and an affine that tells left from right.

    Trailing axes of length 1 are removed. Raises DataError naming the file when it is absent, truncated, holds a value
    that is not finite or one value only, has more than three axes, or its header gives no orientation or no field of
    view of a head.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: file not found")
    return _checked_nifti(lambda: nib.load(path), str(path))


def load_nifti_bytes(data: bytes, name: str) -> nib.Nifti1Image:
    """As `load_nifti`, of the bytes of a .nii or .nii.gz file, such as a member of a zip; `name` is for messages."""

    def load() -> Any:
        plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        kind = nib.Nifti2Image if plain[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c") else nib.Nifti1Image
        return kind.from_bytes(plain)

    return _checked_nifti(load, name)


def _checked_nifti(load: Callable[[], Any], path: str) -> nib.Nifti1Image:
    try:
        image = load()
        values = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
    except Exception as error:  # nibabel, gzip, zlib and numpy each have their own for a torn file
        raise DataError(f"{path}: damaged or no NIfTI file ({_short(error)}); download it again") from error
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise DataError(f"{path}: expected one volume of three axes, found shape {values.shape}")
    _refuse_affine(image, path)
    _refuse_size(values.shape, image.affine, path)
    wrong = int(values.size - np.isfinite(values).sum())
    if wrong:
        raise DataError(f"{path}: {wrong} of {values.size} voxels are not finite; prepare the volume again")
    if values.size and values.min() == values.max():
        raise DataError(f"{path}: every voxel is {values.flat[0]:g}; prepare the volume again")
    return nib.Nifti1Image(values, image.affine)


def to_ras(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same voxels with axes permuted and flipped to the nearest RAS order; the affine moves along, world stays."""
    return nib.as_closest_canonical(image)


def centre_mm(image: nib.Nifti1Image) -> np.ndarray:
    """[3] RAS mm of the centre of mass of the tissue, no lower than BRAIN_HEIGHT_MM below its top.

    For a skull-stripped brain this is the centre of mass of its mask; a head is cut where its brain would end, so that
    the result does not depend on how much neck was scanned. Tissue: above a tenth of the 98th percentile of positive
    voxels. Raises DataError when no voxel is positive.

    >>> ball = np.zeros((21, 21, 21), np.float32)
    >>> ball[3:8, 9:12, 10:13] = 5.0
    >>> centre_mm(nib.Nifti1Image(ball, np.diag([2.0, 2.0, 2.0, 1.0]))).tolist()
    [10.0, 20.0, 22.0]
    """
    ras = to_ras(image)
    tissue = _tissue(np.asarray(ras.dataobj))
    by_slice = tissue.sum(axis=(0, 1))
    top = int(np.flatnonzero(by_slice > 0.05 * by_slice.max())[-1])  # a speck of noise above the head is no vertex
    depth = int(BRAIN_HEIGHT_MM / np.linalg.norm(ras.affine[:3, 2]))
    bottom = max(0, top - depth)
    centre = np.array(ndimage.center_of_mass(tissue[:, :, bottom : top + 1])) + np.array([0, 0, bottom])
    return ras.affine[:3, :3] @ centre + ras.affine[:3, 3]


def resample_to_grid(
    image: nib.Nifti1Image,
    shape: tuple[int, int, int],
    spacing_mm: float,
    *,
    centre: np.ndarray | None = None,
    labels: bool = False,
) -> np.ndarray:
    """float32 (X, Y, Z) RAS: `image` on an isotropic grid whose centre lies on `centre` (RAS mm; default `centre_mm`).

    Linear interpolation after a blur that brings the image down to the grid's resolution (a Gaussian of FWHM
    sqrt(target^2 - source^2), so that fine texture does not alias); `labels`: nearest neighbour and no blur. Outside
    the image is 0. Give a label map the centre of the volume that it belongs to.
    """
    ras = to_ras(image)
    if centre is None:
        centre = centre_mm(ras)
    grid = np.diag([spacing_mm] * 3 + [1.0])
    grid[:3, 3] = np.asarray(centre) - spacing_mm * (np.array(shape) - 1) / 2
    ras = _around(ras, grid, shape)
    values = np.asarray(ras.dataobj, dtype=np.float32)
    if not labels:
        source_mm = np.linalg.norm(ras.affine[:3, :3], axis=0)
        fwhm = np.sqrt(np.maximum(spacing_mm**2 - source_mm**2, 0.0)) / source_mm
        values = ndimage.gaussian_filter(values, fwhm / _FWHM, mode="constant", truncate=3.0)
    to_source = np.linalg.inv(ras.affine) @ grid
    matrix = to_source[:3, :3]
    diagonal = np.diag(matrix)
    straight = np.allclose(matrix, np.diag(diagonal), atol=1e-6)
    return ndimage.affine_transform(
        values,
        diagonal if straight else matrix,  # a vector lets scipy take its much faster path
        offset=to_source[:3, 3],
        output_shape=shape,
        order=0 if labels else 1,
        output=np.float32,
    )


def _around(ras: nib.Nifti1Image, grid: np.ndarray, shape: tuple[int, int, int]) -> nib.Nifti1Image:
    """`ras` cropped to what the grid can see and its blur can reach: half the voxels of a 256^3 head, half the time."""
    corners = nib.affines.apply_affine(np.linalg.inv(ras.affine) @ grid, np.argwhere(np.ones((2, 2, 2))) * shape)
    reach = 2 * grid[0, 0] / np.linalg.norm(ras.affine[:3, :3], axis=0) + 2
    first = np.clip(np.floor(corners.min(axis=0) - reach), 0, np.array(ras.shape) - 1).astype(int)
    stop = np.clip(np.ceil(corners.max(axis=0) + reach), first + 1, ras.shape).astype(int)
    return ras.slicer[tuple(slice(int(a), int(b)) for a, b in zip(first, stop, strict=True))]


def scale_foreground(volume: np.ndarray) -> np.ndarray:
    """`volume` divided by the 99th percentile of its tissue, so that scanner units neither overflow nor vanish in fp16.

    >>> float(scale_foreground(np.full((4, 4, 4), 30000.0, np.float32)).max())
    1.0
    """
    return (volume / np.percentile(volume[_tissue(volume)], 99)).astype(np.float32)


def _tissue(values: np.ndarray) -> np.ndarray:
    positive = values[values > 0]
    if positive.size == 0:
        raise DataError("expected an image with positive voxels, found none")
    return values > _FOREGROUND * np.percentile(positive[:: max(1, positive.size // 500_000)], 98)


def _refuse_affine(image: nib.Nifti1Image, path: str) -> None:
    header = image.header
    codes = [int(header[name]) for name in ("qform_code", "sform_code") if name in header]
    if codes and not any(codes):
        raise DataError(f"{path}: no orientation in its header (qform and sform codes 0): sides are unknown")
    affine = image.affine
    if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"{path}: the affine of its header cannot be inverted; convert the scan again")


def _refuse_size(shape: tuple[int, ...], affine: np.ndarray, path: str) -> None:
    """A head in metres or microns would be resampled to a point or to one voxel, without another sign."""
    edges_mm = np.array(shape[:3]) * np.linalg.norm(affine[:3, :3], axis=0)
    if not ((edges_mm >= FIELD_OF_VIEW_MM[0]) & (edges_mm <= FIELD_OF_VIEW_MM[1])).all():
        found = " x ".join(f"{edge:g}" for edge in edges_mm)
        raise DataError(
            f"{path}: its header gives a field of view of {found} mm, expected {FIELD_OF_VIEW_MM[0]:g} to "
            f"{FIELD_OF_VIEW_MM[1]:g} along each axis; is its affine in another unit than mm?"
        )


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
