"""Small readouts with a planted difference between classes, shared by the tests of the diagnosis task."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from brainage.downstream.readout import READOUT_COLUMNS, Readout, healthy


def visits_of(rows: list[tuple[str, str, float, str | None]], **columns: list) -> pd.DataFrame:
    """A table of (person, session, age, diagnosis)."""
    table = pd.DataFrame(rows, columns=["participant_id", "session_id", "age_years", "diagnosis"])
    table = table.assign(cohort="c", run="1", split="test_external", site="a", sex="F", visit_years=0.0, **columns)
    text = [
        "participant_id",
        "session_id",
        "diagnosis",
        "site",
        "sex",
        *(["mci_outcome"] if "mci_outcome" in columns else []),
    ]
    return table.astype(dict.fromkeys(text, "string"))[[*READOUT_COLUMNS, *columns]]


def readout_of(table: pd.DataFrame, features: np.ndarray | None = None, gap: np.ndarray | None = None) -> Readout:
    n = len(table)
    features = np.random.default_rng(0).normal(size=(n, 3)) if features is None else features
    ages = table["age_years"].to_numpy() + (0.0 if gap is None else gap)
    return Readout("exp", 3, "c", table, features.astype(np.float32), ages, healthy(table), np.ones(n, dtype=bool))


def cohort(
    n: int = 80,
    *,
    width: int = 6,
    effect: float = 1.2,
    gap_years: float = 3.0,
    sites: int = 4,
    scans: int = 1,
    seed: int = 0,
    classes: tuple[str, ...] = ("CN", "AD"),
) -> tuple[Readout, pd.DataFrame]:
    """A readout and its gaps: `effect` sd between the classes in the first feature, `gap_years` in the gap (sd 4)."""
    rng = np.random.default_rng(seed)
    code = rng.permutation(np.arange(n) % len(classes))
    age, sex = rng.uniform(60, 85, n), rng.choice(["F", "M"], n)
    rows = [(f"p{i:04d}", f"s{s}", age[i] + s, classes[code[i]]) for i in range(n) for s in range(scans)]
    person = np.repeat(np.arange(n), scans)
    table = visits_of(rows).assign(sex=sex[person], site=[f"site{i % sites}" for i in person])
    table = table.astype({"sex": "string", "site": "string"})
    features = rng.normal(size=(len(table), width))
    features[:, 0] += effect * code[person]
    gap = rng.normal(0, 4, len(table)) + gap_years * code[person]
    return readout_of(table, features, gap), table.assign(gap_beheshti_years=gap)


def unequal_sites(n: int = 160, seed: int = 3, **planted) -> tuple[Readout, pd.DataFrame]:
    """Two sites with a tenth of their people ill and two with nine tenths, in order of people."""
    readout, gaps = cohort(n, seed=seed, **planted)
    ill = (readout.table["diagnosis"] == "AD").to_numpy()
    rng = np.random.default_rng(seed)
    rich = rng.random(n) < np.where(ill, 0.9, 0.1)
    site = pd.array([f"site{2 * r + h}" for r, h in zip(rich, rng.integers(0, 2, n), strict=True)], dtype="string")
    return dataclasses.replace(readout, table=readout.table.assign(site=site)), gaps
