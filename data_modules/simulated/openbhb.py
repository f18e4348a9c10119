"""Writes a simulated cohort in the published OpenBHB folder layout (Dufumier et al. 2022), with known truth apart.

    participants.tsv  qc.tsv
    {train,val}/derivatives/sub-<id>/ses-1/sub-<id>_preproc-<...>.npy
    resource/         the two templates on the cohort's own grid, label lists
    simulation/       parameters.json and truth.tsv, which no reader opens

Arrays have no header; like the published ones they follow LAS axes (the first index
is the person's right side).
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
from brainage.imaging.simulate import VERSION, BrainSimulator, Scan, grid, stream, templates
from brainage.imaging.simulated_people import plan_sites, simulate_people
from brainage.imaging.simulated_regions import MEASURES, RegionSimulator, region_names
from data_modules.simulated.writing import (
    atomic_file,
    claim_folder,
    finish_folder,
    map_people,
    save_array,
    worker_count,
    write_text,
)

MODALITIES = {
    "vbm": "preproc-cat12vbm_desc-gm_T1w",
    "quasiraw": "preproc-quasiraw_T1w",
    "vbm_roi": "preproc-cat12vbm_desc-gm_ROI",
    "desikan": "preproc-freesurfer_desc-desikan_ROI",
    "destrieux": "preproc-freesurfer_desc-destrieux_ROI",
}
LABELS = {
    "vbm_roi": "cat12vbm_labels.txt",
    "desikan": "freesurfer_atlas-desikan_labels.txt",
    "destrieux": "freesurfer_atlas-destrieux_labels.txt",
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
    `workers` processes (0: one a core where that pays) change nothing in the files. `on_progress(done, subjects)` is
    called as people are finished. Raises DataError when `out` holds something else, ConfigError on values that cannot
    be simulated.
    """
    out = Path(out)
    for modality in modalities:
        if modality not in MODALITIES:
            raise ConfigError(f"modality {modality!r}: unknown{nearest(modality, list(MODALITIES))}")
    people = split_people(simulate_people(plan_sites(subjects, seed=seed), seed=seed), seed=seed)
    grid(spacing_mm)  # refuses an impossible spacing before anything is written
    parameters = {
        "layout": "openbhb folders",
        "version": VERSION,
        "subjects": subjects,
        "seed": seed,
        "spacing_mm": spacing_mm,
        "modalities": sorted(modalities),
        "site_effect": site_effect,
    }
    if claim_folder(out, parameters):
        return out
    write_resources(out / "resource", spacing_mm)
    sampler = Sampler(BrainSimulator(spacing_mm, seed, site_effect=site_effect), modalities)
    write = partial(_write_people, out, tuple(modalities))
    processes = worker_count(workers, len(people) * len(modalities), sampler.brains.shape)
    measured = pd.DataFrame(map_people(sampler, write, people, processes, on_progress))
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
    """The two templates on the cohort's grid with the LAS affine of its arrays, and the names of regions."""
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
        with atomic_file(folder / name) as temporary:
            nib.save(image, temporary)
    for atlas, name in LABELS.items():
        write_text(folder / name, "\n".join(region_names(atlas)) + "\n")
    write_text(folder / "freesurfer_channels.txt", "\n".join(MEASURES) + "\n")


def to_las(volume: np.ndarray) -> np.ndarray:
    """The same volume with its first axis from right to left, contiguous."""
    return np.ascontiguousarray(volume[::-1])


class Sampler:
    """Any modality of a scan as the published arrays hold it; picklable, one for each worker process."""

    def __init__(self, simulator: BrainSimulator, modalities: Sequence[str]) -> None:
        self.brains = simulator
        self.regions = RegionSimulator(simulator) if set(modalities) & set(LABELS) else None

    def array(self, scan: Scan, modality: str, grey: np.ndarray) -> np.ndarray:
        """float32: (1, 1, X, Y, Z) on LAS axes, (1, 1, 284) or (1, 7, regions); `grey` is the scan's map in RAS."""
        if modality == "vbm":
            return to_las(grey)[None, None]
        if modality == "quasiraw":
            return to_las(self.brains.t1(scan))[None, None]
        assert self.regions is not None
        return (
            self.regions.vbm(scan, grey)[None, None]
            if modality == "vbm_roi"
            else self.regions.cortex(scan, modality)[None]
        )


def _write_people(
    out: Path, modalities: tuple[str, ...], sampler: Sampler, task: Sequence[tuple[Scan, str]]
) -> list[dict[str, float]]:
    """Writes the arrays of some people; returns their tissue volumes (computed again where the files exist already)."""
    measured = []
    for scan, split in task:
        name = f"sub-{scan.participant_id}"
        folder = out / ("train" if split == "train" else "val") / "derivatives" / name / f"ses-{scan.session_id}"
        grey = sampler.brains.grey_matter(scan)
        for modality in modalities:
            path = folder / f"{name}_{MODALITIES[modality]}.npy"
            if not path.exists():
                save_array(path, sampler.array(scan, modality, grey))
        measured.append(sampler.brains.tissue_ml(scan, grey))
    return measured
