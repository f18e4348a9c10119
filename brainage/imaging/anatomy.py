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


def axis_scores(volume: np.ndarray, affine: np.ndarray, modality: str = "brain") -> dict[str, float]:
    """Correlation with the MNI152 template of `volume` (X, Y, Z) under all 48 axis permutations and flips.

    Keys are the volume's axes in the order and direction tried: "x y z" as it is, "-x y z" mirrored. Both are laid on
    their centres of mass first. `modality` naming grey matter compares with the grey matter template, else with T1.
    """
    moving = _cube(volume, affine)
    fixed = _template_cube(_is_grey(modality))
    scores = {}
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            turned = moving.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
            name = " ".join(f"{'-' if sign < 0 else ''}{'xyz'[axis]}" for axis, sign in zip(order, signs, strict=True))
            scores[name] = float(np.corrcoef(turned.ravel(), fixed.ravel())[0, 1])
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
    """The volume on CUBE^3 voxels of CUBE_MM around its centre of mass; axes must be RAS, without rotation."""
    spacing = np.diag(affine)[:3]
    blurred = ndimage.gaussian_filter(np.clip(volume, 0, None).astype(np.float32), CUBE_MM / spacing / 2.355)
    first_mm = _centre(volume, affine) - CUBE_MM * (CUBE - 1) / 2
    offset = (first_mm - affine[:3, 3]) / spacing
    return ndimage.affine_transform(blurred, CUBE_MM / spacing, offset, output_shape=(CUBE,) * 3, order=1)


def _centre(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """[3] mm of the centre of mass of the positive values."""
    return affine[:3, :3] @ np.array(ndimage.center_of_mass(np.clip(volume, 0, None))) + affine[:3, 3]
