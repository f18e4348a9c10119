"""A simulated cohort in a store, with faults planted in some of its scans: known answers for quality control."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.data.array_store import ArrayStore
from brainage.data.store import prepare_store
from brainage.data.table import finish_table
from brainage.imaging.contract import InputContract
from brainage.imaging.simulate import BrainSimulator, grid
from brainage.imaging.simulated_people import plan_sites, scans, simulate_people

FAULTS = ("half", "scale", "noise", "upside_down", "mirrored", "empty", "displaced", "older", "older", "duplicate")


class Planted(NamedTuple):
    store: ArrayStore
    faults: dict[int, str]  # row of the store -> what was planted there
    clean: np.ndarray  # rows of the store

    def rows(self, fault: str) -> list[int]:
        return [row for row, name in self.faults.items() if name == fault]


def planted_store(
    folder: Path, *, people: int, seed: int, spacing_mm: float = 6.0, faults=FAULTS, space: str = "MNI152"
) -> Planted:
    """`people` of OpenBHB-like ages and sites as modulated grey matter, some of them spoilt."""
    sheet = simulate_people(plan_sites(people, seed=seed), seed=seed)
    sheet = sheet.sort_values("participant_id", ignore_index=True)  # the order of a finished table
    simulator = BrainSimulator(spacing_mm, seed)
    images = [simulator.grey_matter(scan) for scan in scans(sheet)]
    draw = np.random.default_rng(seed)
    chosen = draw.permutation(people)[: len(faults)]
    ages = sheet["age_years"].to_numpy().copy()
    twins = []
    for row, fault in zip(chosen, faults, strict=True):
        if fault == "older":
            ages[row] += 40
        elif fault == "duplicate":
            twins.append(int((row + 1) % people))
            images[row] = images[twins[-1]]
        else:
            images[row] = spoilt(images[row], fault, spacing_mm, draw)
    rows = pd.DataFrame({
        "cohort": "simulated", "participant_id": sheet["participant_id"], "session_id": "1", "site": sheet["site"],
        "age_years": ages, "sex": sheet["sex"], "diagnosis": "CN", "path": [str(row) for row in range(people)],
    })  # fmt: skip
    table = finish_table(rows, source="simulated").table
    shape, affine = grid(spacing_mm)
    contract = InputContract(
        "cat12vbm_gm", "volume", (1, *shape), space=space, spacing_mm=(spacing_mm,) * 3,
        origin_mm=tuple(affine[:3, 3].tolist()), axes="RAS",
    )  # fmt: skip
    store = prepare_store(table, contract, lambda path: images[int(path)][None], folder / "store", workers=1)
    found = {int(row): fault for row, fault in zip(chosen, faults, strict=True)}
    clean = np.setdiff1d(np.arange(people), [*found, *twins])
    return Planted(store, found, clean)


def spoilt(image: np.ndarray, fault: str, spacing_mm: float, draw: np.random.Generator) -> np.ndarray:
    if fault == "half":
        return np.where(np.arange(len(image))[:, None, None] < len(image) // 2, 0, image)
    if fault == "noise":
        return np.abs(draw.standard_normal(image.shape, dtype=np.float32)) * 0.3
    return {
        "scale": lambda: image * 4,
        "upside_down": lambda: image[:, :, ::-1],
        "mirrored": lambda: image[::-1],
        "empty": lambda: np.zeros_like(image),
        "displaced": lambda: np.roll(image, round(16 / spacing_mm), 1),
    }[fault]()
