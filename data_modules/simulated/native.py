"""NIfTI files as scanners leave them: any order of axes, a shifted origin, scaled integers, all in the header."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from data_modules.simulated.writing import atomic_file

AXES = ("PSR", "LAS", "RAS", "RPI", "ASL", "LIP")  # orders of axes that scanners and converters leave


def save_native(
    path: Path, volume: np.ndarray, affine: np.ndarray, *, axes: str = "RAS", shift_mm: tuple[float, float, float]
) -> None:
    """`volume` [X, Y, Z] in RAS with its 4x4 affine, stored in `axes` as int16 with a slope, moved by `shift_mm`.

    Nobody lies in the middle of a scanner: a reader has to centre the brain itself. Values keep four digits.
    """
    moved = affine.copy()
    moved[:3, 3] += shift_mm
    image = nib.Nifti1Image(np.asarray(volume, dtype=np.float32), moved)
    turn = nib.orientations.ornt_transform(nib.io_orientation(moved), nib.orientations.axcodes2ornt(tuple(axes)))
    image = image.as_reoriented(turn)
    image.set_data_dtype(np.int16)
    image.set_sform(image.affine, code="scanner")
    with atomic_file(path) as temporary:
        nib.save(image, temporary)


def save_prepared(path: Path, volume: np.ndarray, affine: np.ndarray) -> None:
    """`volume` [X, Y, Z] in RAS as float32 on LAS axes with an MNI sform, the way SPM and CAT12 write theirs."""
    image = nib.Nifti1Image(np.asarray(volume, dtype=np.float32), affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(("L", "A", "S")))
    image = image.as_reoriented(turn)
    image.set_sform(image.affine, code="mni")
    with atomic_file(path) as temporary:
        nib.save(image, temporary)
