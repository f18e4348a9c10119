"""OpenBHB's two forms written by hand on a grid of 4 x 5 x 6 voxels, so that every voxel can be followed."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

SHAPE = (4, 5, 6)
LAS = nib.affines.from_matvec(np.diag([-3.0, 3.0, 3.0]), [90.0, -126.0, -72.0])
SPLITS = {101: "train", 102: "train", 103: "internal_test", 104: "external_test"}
FILES = {
    "vbm": ("preproc-cat12vbm_desc-gm_T1w", (1, 1, *SHAPE)),
    "quasiraw": ("preproc-quasiraw_T1w", (1, 1, *SHAPE)),
    "vbm_roi": ("preproc-cat12vbm_desc-gm_ROI", (1, 1, 284)),
    "desikan": ("preproc-freesurfer_desc-desikan_ROI", (1, 7, 68)),
    "destrieux": ("preproc-freesurfer_desc-destrieux_ROI", (1, 7, 148)),
}
TEMPLATES = {
    "vbm": "cat12vbm_space-MNI152_desc-gm_TPM.nii.gz",
    "quasiraw": "quasiraw_space-MNI152_desc-brain_T1w.nii.gz",
}
XHEMI = 8 * 163842


def participants() -> pd.DataFrame:
    n = len(SPLITS)
    return pd.DataFrame(
        {
            "participant_id": list(SPLITS), "study": "IXI", "sex": ["male", "female"] * (n // 2),
            "age": [20.5, 31.0, 44.25, 60.0], "site": 1, "diagnosis": "control",
            "tiv": 1500.0, "csfv": 300.0, "gmv": 700.0, "wmv": 500.0, "magnetic_field_strength": 3.0,
            "acquisition_setting": 1, "siteXacq": [7, 7, 7, 9], "split": list(SPLITS.values()),
        }
    )  # fmt: skip


def array(person: int, modality: str) -> np.ndarray:
    """The stored array (leading 1s, LAS) of a person."""
    rng = np.random.default_rng([person, list(FILES).index(modality)])
    return rng.random(FILES[modality][1]).astype(np.float32) + 1


def array_file(root: Path, person: int, modality: str) -> Path:
    folder = "train" if SPLITS[person] == "train" else "val"
    return root / folder / f"derivatives/sub-{person}/ses-1/sub-{person}_{FILES[modality][0]}.npy"


def write_sheet(root: Path, sheet: pd.DataFrame | None = None) -> None:
    (participants() if sheet is None else sheet).to_csv(root / "participants.tsv", sep="\t", index=False)


def write_folders(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    write_sheet(root)
    for person in SPLITS:
        for modality in FILES:
            file = array_file(root, person, modality)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, array(person, modality))
    write_templates(root)
    return root


def write_templates(root: Path) -> dict[str, np.ndarray]:
    """resource/ with a 4-D grey matter map, as SPM's are; returns the masks."""
    (root / "resource").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    grey, brain = rng.random(SHAPE).astype(np.float32) ** 4, rng.random(SHAPE).astype(np.float32) - 0.4
    other = np.ones_like(grey)
    nib.save(nib.Nifti1Image(np.stack([grey, other], axis=3), LAS), root / "resource" / TEMPLATES["vbm"])
    nib.save(nib.Nifti1Image(brain.clip(0), LAS), root / "resource" / TEMPLATES["quasiraw"])
    return {"vbm": grey > 0.05, "quasiraw": brain > 0}


def write_challenge(root: Path, folder: str = "", *, header: bool = False) -> Path:
    """train, internal_test and external_test (in `data/`: test); `header`: one row before the others, as in the kit."""
    masks = write_templates(root)
    (root / folder).mkdir(parents=True, exist_ok=True)
    sheet = participants()
    for split in ("train", "internal_test", "external_test"):
        rows = sheet[sheet["split"] == split]
        values = np.stack([flat(person, masks) for person in rows["participant_id"]])
        if header:
            values = np.concatenate([np.full_like(values[:1], np.nan), values])
        stem = "test" if folder and split == "internal_test" else split
        np.save(root / folder / f"{stem}.npy", values)
        table = pd.DataFrame({"age": rows["age"], "site": rows["siteXacq"], "split": stem})
        table.insert(0, "participant_id", rows["participant_id"])
        table.to_csv(root / folder / f"{stem}.tsv", sep="\t", index=False)
    return root


def flat(person: int, masks: dict[str, np.ndarray]) -> np.ndarray:
    blocks = [array(person, name)[0, 0][mask] for name, mask in masks.items()]
    blocks.append(np.zeros(XHEMI, np.float32))
    blocks += [array(person, name).ravel() for name in ("vbm_roi", "desikan", "destrieux")]
    return np.concatenate(blocks)
