"""A few IXI people written by hand: MNI template brains in odd axes and scaled integers, sheets, thickness."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.datasets import load_mni152_template

PEOPLE = {  # scan -> axes of the stored array
    "IXI012-HH-1211": "PSR",
    "IXI013-Guys-1212": "LAS",
    "IXI014-IOP-1236": "RAS",
    "IXI015-HH-1258": "RPI",
}
AGES = {12: 38.78, 13: 46.71, 14: 34.24, 15: 24.28}
REGIONS = [f"{side}_region{number:02d}_thickness" for side in ("lh", "rh") for number in range(34)]


def official_sheet() -> pd.DataFrame:
    """IXI.xls as exported: numbers for people and sexes, no hospital."""
    return pd.DataFrame({"IXI_ID": list(AGES), "SEX_ID (1=m, 2=f)": [1, 1, 2, 1], "AGE": list(AGES.values())})


def write_images(root: Path, ending: str = "_brain") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    template = load_mni152_template(resolution=4)
    brain = np.asarray(template.dataobj, dtype=np.float32)
    for number, (scan, axes) in enumerate(PEOPLE.items()):
        stored = (brain / brain.max() * 200 * (1 + 0.02 * number * np.linspace(-1, 1, brain.shape[1])[:, None])).round()
        affine = template.affine.copy()
        affine[:3, 3] += [11 * number, -7 * number, 5 * number]  # nobody lies in the middle of a scanner
        image = nib.Nifti1Image(stored.astype(np.uint8), affine)
        order = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axes)))
        image = image.as_reoriented(order)
        image.header.set_slope_inter(0.5 + number, 0)
        image.set_sform(image.affine, code="scanner")
        nib.save(image, root / f"{scan}-T1{ending}.nii.gz")
    return root


def write_sheet(root: Path, sheet: pd.DataFrame | None = None, name: str = "IXI.csv", sep: str = ",") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (official_sheet() if sheet is None else sheet).to_csv(root / name, index=False, sep=sep)
    return root


def thickness() -> pd.DataFrame:
    """Regions in a shuffled order of columns, among columns that are no regions."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"participant_id": [f"sub-IXI{number:03d}" for number in AGES]})
    for name in rng.permutation(REGIONS):
        table[name] = rng.uniform(1.5, 4.0, len(AGES)).round(3)
    return table.assign(lh_MeanThickness_thickness=2.5, rh_MeanThickness_thickness=2.5, eTIV=1.5e6)
