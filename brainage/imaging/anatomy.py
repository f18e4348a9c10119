"""Is a volume the right way up? Comparison with the MNI152 template that ships inside nilearn.

Legend: X Y Z voxels in RAS; millimetres of the contract's space. The template is left-right symmetric, so nothing here
can tell the sides of a brain.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import ndimage

from brainage.imaging.contract import InputContract

CUBE_MM, CUBE = 4.0, 48  # grid on which orientations are compared
BAND = (1.0, 6.0)  # widths of the Gaussians whose difference is compared, in voxels of that grid
SHIFT = 4  # voxels a brain may be off its template's place


def axis_scores(volume: np.ndarray, affine: np.ndarray, modality: str = "brain") -> dict[str, float]:
    """Correlation with the MNI152 template of `volume` (X, Y, Z) under all 48 axis permutations and flips.

    Keys are the volume's axes in the order and direction tried: "x y z" as it is, "-x y z" mirrored. Both are laid on
    their centres of mass, band-passed (the outline of a brain says little, its folds and ventricles say much) and
    compared at the best shift within SHIFT voxels. `affine` must be RAS without rotation; `modality` naming grey matter
    compares with the grey matter template, else with T1.
    """
    moving = _cube(volume, affine)
    fixed = np.conj(np.fft.rfftn(_template_cube(_is_grey(modality))))
    scores = {}
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            turned = moving.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
            by_shift = np.fft.irfftn(np.fft.rfftn(turned) * fixed, s=turned.shape, axes=(0, 1, 2))
            near = np.roll(by_shift, (SHIFT,) * 3, (0, 1, 2))[(slice(0, 2 * SHIFT + 1),) * 3]
            name = " ".join(f"{'-' if sign < 0 else ''}{'xyz'[axis]}" for axis, sign in zip(order, signs, strict=True))
            scores[name] = float(near.max())
    return scores


def off_centre_mm(volume: np.ndarray, contract: InputContract) -> np.ndarray:
    """[3] mm from where the contract's space has a brain's centre of mass to where it is; zeros in other spaces."""
    found = _centre(volume, contract.affine)
    if contract.space == "native_centred":
        return found
    if contract.space.startswith("MNI"):
        image = _template(_is_grey(contract.modality))
        return found - _centre(np.asarray(image.dataobj), image.affine)
    return np.zeros(3)


def _is_grey(modality: str) -> bool:
    return "gm" in modality or "grey" in modality


@lru_cache(maxsize=2)
def _template(grey: bool) -> Any:
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template  # slow to import

    return (load_mni152_gm_template if grey else load_mni152_template)(resolution=2)


@lru_cache(maxsize=2)
def _template_cube(grey: bool) -> np.ndarray:
    image = _template(grey)
    return _cube(np.asarray(image.dataobj), image.affine)


def _cube(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """CUBE^3 voxels of CUBE_MM around the centre of mass, band-passed; mean 0 and length 1, so products correlate."""
    spacing = np.diag(affine)[:3]
    values = np.clip(volume, 0, np.percentile(volume[volume > 0], 98)).astype(np.float32)
    blurred = ndimage.gaussian_filter(values, CUBE_MM / spacing / 2.355)
    first_mm = _centre(volume, affine) - CUBE_MM * (CUBE - 1) / 2
    offset = (first_mm - affine[:3, 3]) / spacing
    cube = ndimage.affine_transform(blurred, CUBE_MM / spacing, offset, output_shape=(CUBE,) * 3, order=1)
    band = ndimage.gaussian_filter(cube, BAND[0]) - ndimage.gaussian_filter(cube, BAND[1])
    band -= band.mean()
    return band / np.linalg.norm(band)


def _centre(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """[3] mm of the centre of mass of the positive values."""
    return affine[:3, :3] @ np.array(ndimage.center_of_mass(np.clip(volume, 0, None))) + affine[:3, 3]
