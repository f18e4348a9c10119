"""Writes a simulated cohort in the published OpenBHB folder layout (Dufumier et al. 2022), with known truth apart.

    participants.tsv  qc.tsv
    {train,val}/derivatives/sub-<id>/ses-1/sub-<id>_preproc-<...>.npy
    resource/         the two templates on the cohort's own grid, label lists
    simulation/       parameters.json and truth.tsv, which no reader opens

Arrays have no header; like the published ones they follow LAS axes (x falls from right to left of the array's end:
the first index is the person's right side).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from brainage.config import nearest
from brainage.errors import ConfigError
from brainage.imaging.simulate import BrainSimulator, Scan, grid, stream, templates
from brainage.imaging.simulated_people import plan_sites, simulate_people
from data_modules.simulated.writing import atomic_file, claim_folder, finish_folder, map_people, save_array, write_text

MODALITIES = {
    "vbm": "preproc-cat12vbm_desc-gm_T1w",
    "quasiraw": "preproc-quasiraw_T1w",
}
INTERNAL_TEST_SHARE = 0.18  # of the people of a site that is trained on: 15 % of all, with 15 % external


def write_openbhb(
    out: str | Path,
    *,
    subjects: int,
    seed: int,
    spacing_mm: float = 4.0,
    workers: int = 0,
    modalities: Sequence[str] = ("vbm",),
    site_effect: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write (or complete) the cohort in `out` and return it; a finished cohort of equal parameters is left as it is.

    Every file is written under a temporary name, then renamed; a rerun after an interruption writes what is missing.
    `workers` processes (0: one a core) change nothing in the files. `on_progress(done, subjects)` is called as people
    are finished. Raises DataError when `out` holds something else, ConfigError on values that cannot be simulated.
    """
    out = Path(out)
    for modality in modalities:
        if modality not in MODALITIES:
            raise ConfigError(f"modality {modality!r}: unknown{nearest(modality, list(MODALITIES))}")
    people = split_people(simulate_people(plan_sites(subjects, seed=seed), seed=seed), seed=seed)
    grid(spacing_mm)  # refuses an impossible spacing before anything is written
    parameters = {
        "layout": "openbhb folders, version 1",
        "subjects": subjects,
        "seed": seed,
        "spacing_mm": spacing_mm,
        "modalities": sorted(modalities),
        "site_effect": site_effect,
    }
    if claim_folder(out, parameters):
        return out
    write_resources(out / "resource", spacing_mm)
    simulator = BrainSimulator(spacing_mm, seed, site_effect=site_effect)
    write = partial(_write_person, out, tuple(modalities))
    measured = pd.DataFrame(map_people(simulator, write, people, workers, on_progress))
    write_text(out / "participants.tsv", participants_table(people, measured).to_csv(sep="\t", index=False))
    write_text(out / "qc.tsv", qc_table(people, seed).to_csv(sep="\t", index=False))
    finish_folder(out, parameters, people)
    return out


def split_people(people: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Adds `split`: external_test for held-out sites, else internal_test for about 18 % of each site, else train."""
    lot = [stream(seed, "split", who).random() for who in people["participant_id"]]
    rank = pd.Series(lot, index=people.index).groupby(people["site"]).rank(method="first")
    size = people.groupby("site")["site"].transform("size")
    tested = np.where(rank <= np.maximum((size * INTERNAL_TEST_SHARE).round(), 1), "internal_test", "train")
    return people.assign(split=np.where(people["external"], "external_test", tested))


def participants_table(people: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """participants.tsv with the published columns and codes; volumes in ml."""
    table = pd.DataFrame(
        {
            "participant_id": people["participant_id"].astype("int64"),
            "study": people["study"],
            "sex": people["sex"].map({"F": "female", "M": "male"}),
            "age": people["age_years"],
            "site": people["hospital"],
            "diagnosis": "control",
        }
    )
    table = pd.concat([table, measured[["tiv", "csfv", "gmv", "wmv"]].round(3)], axis=1)
    return table.assign(
        magnetic_field_strength=people["field_tesla"],
        acquisition_setting=people["acquisition"],
        siteXacq=people["site"].astype("int64"),
        split=people["split"],
    )


def qc_table(people: pd.DataFrame, seed: int) -> pd.DataFrame:
    """qc.tsv: everybody passes the published thresholds (IQR and NCR < 4, Euler > -217, correlation > 0.5)."""
    draws = np.array([stream(seed, "qc", who).standard_normal(4) for who in people["participant_id"]]).clip(-3, 3)
    return pd.DataFrame(
        {
            "participant_id": people["participant_id"].astype("int64"),
            "reconall-euler": (-80 + 30 * draws[:, 0]).round().astype(int),
            "cat12vbm-ncr": (2.3 + 0.3 * draws[:, 1]).round(3),
            "cat12vbm-iqr": (2.4 + 0.3 * draws[:, 2]).round(3),
            "quasiraw-corr": (0.82 + 0.05 * draws[:, 3]).round(4),
        }
    )


def write_resources(folder: Path, spacing_mm: float) -> None:
    """The grey-matter probability map and the T1 template on the cohort's grid, with the LAS affine of the arrays."""
    (x, _, _), affine = grid(spacing_mm)
    las = affine.copy()
    las[0, 0], las[0, 3] = -spacing_mm, affine[0, 3] + spacing_mm * (x - 1)
    maps = templates(float(spacing_mm))
    for name, volume in (
        ("cat12vbm_space-MNI152_desc-gm_TPM.nii.gz", maps.grey),
        ("quasiraw_space-MNI152_desc-brain_T1w.nii.gz", maps.t1),
    ):
        image = nib.Nifti1Image(to_las(volume), las)
        image.set_sform(las, code="mni")
        with atomic_file(folder / name) as (_, temporary):
            nib.save(image, temporary)


def to_las(volume: np.ndarray) -> np.ndarray:
    """The same volume with its first axis from right to left, contiguous."""
    return np.ascontiguousarray(volume[::-1])


def _write_person(
    out: Path, modalities: tuple[str, ...], simulator: BrainSimulator, task: Sequence[tuple[Scan, str]]
) -> list[dict[str, float]]:
    """Writes the arrays of some people; returns their tissue volumes (computed again where the files exist already)."""
    measured = []
    for scan, split in task:
        name = f"sub-{scan.participant_id}"
        folder = out / ("train" if split == "train" else "val") / "derivatives" / name / f"ses-{scan.session_id}"
        grey = simulator.grey_matter(scan)
        for modality in modalities:
            path = folder / f"{name}_{MODALITIES[modality]}.npy"
            if not path.exists():
                volume = grey if modality == "vbm" else simulator.t1(scan)
                save_array(path, to_las(volume)[None, None])
        measured.append(simulator.tissue_ml(scan, grey))
    return measured
