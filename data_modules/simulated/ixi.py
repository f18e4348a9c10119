"""Writes a simulated cohort in the layout of IXI (brain-development.org), with known truth apart.

    images/IXI012-HH-1211-T1_brain.nii.gz      modality brain
    images/IXI012-HH-1211-T1.nii.gz            head: a skull-stripped brain too, since there is no simulator of skulls
    tables/IXI.csv                             the sheet as IXI.xls is exported: numbers for people and sexes
    tables/aparc_thickness.csv                 thickness: 68 regions, in a row of columns that are no regions
    simulation/                                parameters.json and truth.tsv, which no reader opens

Oddities as in the real one: repeated rows of the sheet, people without an age, rows of people without an image, images
of people without a row, axes that differ from hospital to hospital.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainage.config import nearest
from brainage.errors import ConfigError
from brainage.imaging.simulate import VERSION, BrainSimulator, Scan, grid, stream
from brainage.imaging.simulated_people import Site, simulate_people
from brainage.imaging.simulated_regions import MEASURES, RegionSimulator
from data_modules.simulated.native import save_native
from data_modules.simulated.writing import claim_folder, finish_folder, map_people, worker_count, write_text

MODALITIES = {"brain": "_brain", "head": "", "thickness": ""}  # what follows -T1 in a file name
HOSPITALS = {  # share of people, field, axes of the stored images
    "Guys": (0.55, 1.5, "PSR"),
    "HH": (0.32, 3.0, "PSL"),
    "IOP": (0.13, 1.5, "LAS"),
}
_THICKNESS = MEASURES.index("average_thickness_mm")
_CORTEX = (
    "bankssts", "caudalanteriorcingulate", "caudalmiddlefrontal", "cuneus", "entorhinal", "fusiform",
    "inferiorparietal", "inferiortemporal", "isthmuscingulate", "lateraloccipital", "lateralorbitofrontal", "lingual",
    "medialorbitofrontal", "middletemporal", "parahippocampal", "paracentral", "parsopercularis", "parsorbitalis",
    "parstriangularis", "pericalcarine", "postcentral", "posteriorcingulate", "precentral", "precuneus",
    "rostralanteriorcingulate", "rostralmiddlefrontal", "superiorfrontal", "superiorparietal", "superiortemporal",
    "supramarginal", "frontalpole", "temporalpole", "transversetemporal", "insula",
)  # fmt: skip
COLUMNS = tuple(f"{side}h_{name}_thickness" for side in "lr" for name in _CORTEX)  # FreeSurfer's names, not its borders


def write_ixi(
    out: str | Path,
    *,
    subjects: int,
    seed: int,
    spacing_mm: float = 4.0,
    workers: int = 0,
    modalities: Sequence[str] = ("brain",),
    site_effect: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write (or complete) the cohort in `out` and return it; a finished cohort of equal parameters is left as it is.

    `subjects` people that a reader finds whole; some more lack an age, an image or a row. See `write_openbhb` for what
    is promised. truth.tsv has one row an image, the columns of `simulate_people` and `whole`.
    """
    out = Path(out)
    for modality in modalities:
        if modality not in MODALITIES:
            raise ConfigError(f"modality {modality!r}: unknown{nearest(modality, list(MODALITIES))}")
    if not len(HOSPITALS) <= subjects <= 900:
        raise ConfigError(f"subjects={subjects}: expected {len(HOSPITALS)} to 900, an IXI number has three digits")
    grid(spacing_mm)  # refuses an impossible spacing before anything is written
    parameters = {
        "layout": "ixi", "version": VERSION, "subjects": subjects, "seed": seed, "spacing_mm": spacing_mm,
        "modalities": sorted(modalities), "site_effect": site_effect,
    }  # fmt: skip
    if claim_folder(out, parameters):
        return out
    everybody = simulate_volunteers(subjects, seed=seed)
    scanned = everybody[everybody["lacks"] != "image"].reset_index(drop=True)
    brains = BrainSimulator(spacing_mm, seed, site_effect=site_effect)
    names = dict(zip(scanned["participant_id"], scanned["scan"], strict=True))
    write = partial(_write_people, out / "images", tuple(modalities), names)
    processes = worker_count(workers, len(scanned) * len(modalities), brains.shape)
    sampler = (brains, RegionSimulator(brains) if "thickness" in modalities else None)
    measured = map_people(sampler, write, scanned.assign(split=""), processes, on_progress)
    write_text(out / "tables" / "IXI.csv", demographic_sheet(everybody, seed=seed).to_csv(index=False))
    if "thickness" in modalities:
        write_text(out / "tables" / "aparc_thickness.csv", thickness_table(scanned, measured).to_csv(index=False))
    finish_folder(out, parameters, scanned.assign(whole=scanned["lacks"] == "").drop(columns="lacks"))
    return out


def simulate_volunteers(subjects: int, *, seed: int) -> pd.DataFrame:
    """One row a person: `simulate_people`'s columns under IXI's numbers, scan (IXI012-HH-1211) and what they lack.

    `lacks` is age, image or row for the last of them, a fortieth of `subjects` each (one at least), else empty.
    """
    some = max(subjects // 40, 1)
    total = subjects + 3 * some
    counts = [max(round(share * total), 1) for share, _, _ in HOSPITALS.values()]
    counts[0] += total - sum(counts)
    sites = [
        Site(name, count, mean_age_years=49.0, sd_age_years=16.0, field_tesla=field)
        for (name, (_, field, _)), count in zip(HOSPITALS.items(), counts, strict=True)
    ]
    people = simulate_people(sites, seed=seed)
    order = stream(seed, "ixi order").permutation(total)
    people = people.iloc[order].reset_index(drop=True)  # numbers say nothing about hospitals
    draw = stream(seed, "ixi numbers")
    numbers = np.sort(draw.choice(np.arange(2, 1000), total, replace=False))
    exams = draw.integers(400, 2000, total)
    people["participant_id"] = [f"IXI{number:03d}" for number in numbers]
    people["scan"] = people["participant_id"] + "-" + people["site"] + "-" + pd.Series(exams).map("{:04d}".format)
    return people.assign(lacks=[""] * subjects + [lack for lack in ("age", "image", "row") for _ in range(some)])


def demographic_sheet(people: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """IXI.xls as exported; the hospital is in no column, and a few people are there twice."""
    listed = people[people["lacks"] != "row"]
    height = [stream(seed, "ixi height", who).normal(170, 9) for who in listed["participant_id"]]
    sheet = pd.DataFrame(
        {
            "IXI_ID": listed["participant_id"].str[3:].astype(int),
            "SEX_ID (1=m, 2=f)": listed["sex"].map({"M": 1, "F": 2}),
            "HEIGHT": np.round(height).astype(int),
            "WEIGHT": 0,
            "ETHNIC_ID": 1,
            "DATE_AVAILABLE": 1,
            "AGE": listed["age_years"].round(2).where(listed["lacks"] != "age"),
        }
    )
    twice = sheet.iloc[:: max(len(sheet) // 3, 1)]
    return pd.concat([sheet, twice]).sort_values("IXI_ID", kind="stable", ignore_index=True)


def thickness_table(people: pd.DataFrame, measured: list[Any]) -> pd.DataFrame:
    """One row a person: 68 regions in mm among the columns that such exports also hold."""
    table = pd.DataFrame(np.round(np.stack(measured), 4), columns=COLUMNS)
    table.insert(0, "participant_id", "sub-" + people["participant_id"])
    for side in "lr":
        mine = [name for name in COLUMNS if name.startswith(side)]
        table[f"{side}h_MeanThickness_thickness"] = table[mine].mean(axis=1).round(5)
    return table.assign(eTIV=1.5e6)


def _write_people(
    folder: Path,
    modalities: tuple[str, ...],
    names: dict[str, str],
    sampler: tuple[BrainSimulator, RegionSimulator | None],
    task: Sequence[tuple[Scan, str]],
) -> list[np.ndarray]:
    """Writes the images of some people; returns their thickness, [68] each, empty where it is not asked for."""
    brains, regions = sampler
    measured = []
    for scan, _ in task:
        for modality in modalities:
            path = folder / f"{names[scan.participant_id]}-T1{MODALITIES[modality]}.nii.gz"
            if modality != "thickness" and not path.exists():
                place = stream(brains.seed, "place", scan.participant_id).uniform(-15, 15, 3)
                x, y, z = place.tolist()
                axes = HOSPITALS[scan.site][2]
                save_native(path, brains.t1(scan), brains.affine, axes=axes, shift_mm=(x, y, z))
        measured.append(regions.cortex(scan, "desikan")[_THICKNESS] if regions else np.empty(0))
    return measured
