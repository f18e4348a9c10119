"""A small table with a known truth, shared by the tests of the evaluation."""

import numpy as np
import pandas as pd

from brainage.data.table import KEY, finish_table
from brainage.downstream.features import Features

SPLIT_OF = {"train": "train", "val": "val", "int": "test_internal", "ext": "test_external"}


def make_table(train=60, val=10, internal=24, external=20, sites=3, scans=1, seed=0):
    """People of `sites` sites in train, val and test_internal, and of one other site in test_external."""
    rng = np.random.default_rng(seed)
    rows = []
    for name, count in {"train": train, "val": val, "int": internal, "ext": external}.items():
        for person in range(count):
            site = "far" if name == "ext" else f"site{person % sites}"
            age = rng.uniform(18, 85)
            for scan in range(scans):
                rows.append((f"{name}{person:03d}", f"ses{scan}", site, age + scan, SPLIT_OF[name], "FM"[person % 2]))
    frame = pd.DataFrame(rows, columns=["participant_id", "session_id", "site", "age_years", "split", "sex"])
    frame = frame.assign(cohort="demo", run="", path=frame["participant_id"] + frame["session_id"])
    return finish_table(frame.sample(frac=1, random_state=seed), source="test").table


def make_features(table, label="exp", seed=0, width=12, noise_years=3.0, site_signal=0.5):
    """Vectors that hold age (with noise) and site, in an order of rows that is not the table's."""
    rng = np.random.default_rng(seed + 100)
    age = table["age_years"].to_numpy() + rng.normal(0, noise_years, len(table))
    codes = table["site"].astype("category").cat.codes.to_numpy()
    values = rng.normal(0, 0.3, (len(table), width))
    values[:, 0] += (age - 50) / 10
    values[:, 1] += site_signal * codes
    order = rng.permutation(len(table))
    return Features(label, seed, table[KEY].iloc[order].reset_index(drop=True), values[order].astype(np.float32))
