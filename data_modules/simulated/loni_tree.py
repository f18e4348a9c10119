"""Images as they come from the LONI archive: a folder of series, of date and time, of image id, and odd axes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from brainage.imaging.simulate import BrainSimulator, Scan
from data_modules.simulated.writing import atomic_file

AXES = ("PSR", "LAS", "RAS", "LPS")  # of the stored arrays, as different scanners write them
ENDINGS = {"head": ".nii", "brain": "_brain.nii.gz"}
DERIVATIVES = {"vbm": "preproc-cat12vbm_desc-gm_T1w.nii.gz", "quasiraw": "preproc-quasiraw_T1w.nii.gz"}
Task = Sequence[tuple[Scan, str]]


def archive_stem(cohort: str, person: str, description: str, date: pd.Timestamp, image_id: str) -> str:
    """Path without its ending of an image in the download tree; the time of day follows from person and date, so that
    two images of one acquisition differ by a minute and more only where their ids do."""
    seconds = zlib.crc32(f"{person}{image_id}".encode()) % 36000 + 8 * 3600
    time = f"{seconds // 3600:02d}_{seconds // 60 % 60:02d}_{seconds % 60:02d}.0"
    series = description.replace(" ", "_").replace(";", "_").replace("/", "_")
    name = f"{cohort}_{person}_MR_{series}_br_raw_{date:%Y%m%d}_I{image_id}"
    return f"{cohort}/{person}/{series}/{date:%Y-%m-%d}_{time}/I{image_id}/{name}"


def write_natives(out: Path, modalities: tuple[str, ...], brains: BrainSimulator, task: Task) -> list[None]:
    """Simulated skull-stripped brains (there is no skull to simulate) in scanner axes, int16 with a slope, off centre;
    the label of each scan is its path without the ending."""
    for scan, stem in task:
        missing = [path for path in (out / f"{stem}{ENDINGS[name]}" for name in modalities) if not path.exists()]
        if missing:
            image = scanner_image(brains.t1(scan), brains.affine, key=stem)
            for path in missing:
                _save(image, path)
    return [None] * len(task)


def write_derivatives(out: Path, modalities: tuple[str, ...], brains: BrainSimulator, task: Task) -> list[None]:
    """Prepared maps in MNI space on LAS axes, float32; the label of each scan is its path up to the name's end."""
    for scan, stem in task:
        for name in modalities:
            path = out / f"{stem}_{DERIVATIVES[name]}"
            if not path.exists():
                volume = brains.grey_matter(scan) if name == "vbm" else brains.t1(scan)
                _save(_oriented(nib.Nifti1Image(volume, brains.affine), "LAS"), path)
    return [None] * len(task)


def scanner_image(volume: np.ndarray, affine: np.ndarray, *, key: str) -> nib.Nifti1Image:
    """The volume as a scanner would store it: axes, place and slope follow from `key`."""
    draw = zlib.crc32(key.encode())
    placed = affine.copy()
    placed[:3, 3] += [draw % 23 - 11, draw % 17 - 8, draw % 31 - 15]
    slope = float(volume.max()) / 30000
    image = nib.Nifti1Image((volume / slope).round().astype(np.int16), placed)
    image = _oriented(image, AXES[draw % len(AXES)])
    image.header.set_slope_inter(slope, 0)
    return image


def _oriented(image: nib.Nifti1Image, axes: str) -> nib.Nifti1Image:
    wanted = nib.orientations.axcodes2ornt(tuple(axes))
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))
    turned.set_sform(turned.affine, code="mni" if axes == "LAS" else "scanner")
    return turned


def _save(image: nib.Nifti1Image, path: Path) -> None:
    with atomic_file(path) as temporary:
        nib.save(image, temporary)
