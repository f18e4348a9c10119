"""Writes a simulated cohort in the flat form of the OpenBHB challenge: one row of columns a person.

    {train,internal_test,external_test}.npy   float32 [people, columns]
    {train,internal_test,external_test}.tsv   age, site, split
    resource/  simulation/                    as in the folder form

Columns: vbm | quasiraw | xhemi | vbm_roi | desikan | destrieux. The first two are voxels of the LAS arrays inside the
templates (grey matter > 0.05, T1 > 0) in C order, so their number follows the simulated grid. Surface maps (xhemi) are
not simulated: the block keeps its published size and is zero, which a file system with sparse files stores in no space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.imaging.simulate import VERSION, BrainSimulator, Scan, grid
from brainage.imaging.simulated_people import plan_sites, simulate_people
from data_modules.simulated.openbhb import MODALITIES, Sampler, split_people, to_las, write_resources
from data_modules.simulated.writing import (
    atomic_file,
    claim_folder,
    finish_folder,
    map_people,
    worker_count,
    write_text,
)

XHEMI_COLUMNS = 8 * 163842
_THRESHOLDS = {"vbm": 0.05, "quasiraw": 0.0}
_SPLITS = ("train", "internal_test", "external_test")


def write_openbhb_challenge(
    out: str | Path,
    *,
    subjects: int,
    seed: int,
    spacing_mm: float = 4.0,
    workers: int = 0,
    site_effect: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the cohort of `write_openbhb` with the same arguments, flat; same promises, all modalities.

    An interrupted cohort is written anew; row r of truth.tsv among the rows of a split is row r of its array.
    """
    out = Path(out)
    people = split_people(simulate_people(plan_sites(subjects, seed=seed), seed=seed), seed=seed)
    grid(spacing_mm)
    parameters = {
        "layout": "openbhb challenge",
        "version": VERSION,
        "subjects": subjects,
        "seed": seed,
        "spacing_mm": spacing_mm,
        "site_effect": site_effect,
    }
    if claim_folder(out, parameters):
        return out
    write_resources(out / "resource", spacing_mm)
    brains = BrainSimulator(spacing_mm, seed, site_effect=site_effect)
    sampler = Sampler(brains, tuple(MODALITIES))
    masks = {
        "vbm": to_las(brains.templates.grey > _THRESHOLDS["vbm"]),
        "quasiraw": to_las(brains.templates.t1 > _THRESHOLDS["quasiraw"]),
    }
    people = pd.concat([people[people["split"] == split] for split in _SPLITS], ignore_index=True)
    processes = worker_count(workers, len(people) * len(MODALITIES), brains.shape)
    rows = map_people(sampler, partial(_columns, masks), people, processes, on_progress)
    for split in _SPLITS:
        chosen = people[people["split"] == split]
        _write_rows(out / f"{split}.npy", [rows[number] for number in chosen.index])
        table = pd.DataFrame({"age": chosen["age_years"], "site": chosen["site"].astype("int64"), "split": split})
        write_text(out / f"{split}.tsv", table.to_csv(sep="\t", index=False))
    finish_folder(out, parameters, people)
    return out


def _columns(
    masks: dict[str, np.ndarray], sampler: Sampler, task: Sequence[tuple[Scan, str]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The columns before and after the xhemi block of some people."""
    rows = []
    for scan, _ in task:
        grey = sampler.brains.grey_matter(scan)
        blocks = {modality: sampler.array(scan, modality, grey) for modality in MODALITIES}
        volumes = [blocks.pop(modality)[0, 0][mask] for modality, mask in masks.items()]
        rows.append((np.concatenate(volumes), np.concatenate([values.ravel() for values in blocks.values()])))
    return rows


def _write_rows(path: Path, rows: list[tuple[np.ndarray, np.ndarray]]) -> None:
    voxels, regions = (len(part) for part in rows[0])
    shape = (len(rows), voxels + XHEMI_COLUMNS + regions)
    with atomic_file(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        for row, (before, after) in zip(array, rows, strict=True):
            row[:voxels], row[-regions:] = before, after
        array.flush()
