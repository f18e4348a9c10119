"""Frames of predictions, one row a scan and seed, and what their scores have in common.

n scans, S seeds. Scores of several seeds are the mean over seeds of each seed's score, on the same resamples of people.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.data.splits import refuse_leakage
from brainage.data.table import KEY, SPLITS, scan_keys
from brainage.downstream.probes import people
from brainage.errors import DataError

PREDICTION_COLUMNS = [*KEY, "split", "site", "age_years", "sex", "model", "seed", "predicted_age_years"]


class Predicted(NamedTuple):
    """One model in one split, scans sorted by key."""

    model: str
    split: str
    scans: pd.DataFrame  # n rows
    values: np.ndarray  # [S, n]
    seeds: list[int]

    @property
    def persons(self) -> np.ndarray:
        """[n] the person behind each scan."""
        return people(self.scans)

    @property
    def n(self) -> int:
        """Number of people."""
        return len(np.unique(self.persons))

    def spread(self, scores: list[float]) -> str:
        """The phrase on seeds of a note; `scores` holds one number a seed."""
        if len(self.seeds) == 1:
            return ""
        return f"seeds {', '.join(map(str, self.seeds))}, sd over seeds {np.std(scores, ddof=1):.3g}"


def predictions_frame(table: pd.DataFrame, predicted_years: np.ndarray, *, model: str, seed: int) -> pd.DataFrame:
    """PREDICTION_COLUMNS for the scans of `table`, `predicted_years` [rows] in its order.

    Raises LeakageError when a person of the table is in two splits, DataError naming a scan whose prediction is NaN.
    """
    refuse_leakage(table)
    predicted = np.asarray(predicted_years, dtype=np.float64)
    if predicted.shape != (len(table),):
        raise DataError(f"predictions of {model!r}: expected shape ({len(table)},), found {predicted.shape}")
    if not np.isfinite(predicted).all():
        broken = scan_keys(table)[~np.isfinite(predicted)]
        raise DataError(f"predictions of {model!r} (seed {seed}): {len(broken)} are not finite, first {broken.iloc[0]}")
    frame = table.assign(model=model, seed=int(seed), predicted_age_years=predicted)[PREDICTION_COLUMNS]
    return frame.astype({"model": "string", "seed": "int64"}).reset_index(drop=True)


def by_seed(predictions: pd.DataFrame, split: str, column: str) -> Predicted:
    """`column` of one model's predictions in `split`, which must hold some, as a matrix over seeds.

    Raises DataError on several models, a scan predicted twice by one seed, or seeds that scored different scans.
    """
    rows = predictions[predictions["split"] == split]
    models = rows["model"].unique()
    if len(models) != 1:
        raise DataError(f"predictions: expected those of one model, found {', '.join(models)}; score one at a time")
    model = str(models[0])
    parts = {int(seed): _sorted(part) for seed, part in rows.groupby("seed")}
    seeds = list(parts)
    first = scan_keys(parts[seeds[0]])
    for seed, part in parts.items():
        keys = scan_keys(part)
        if keys.duplicated().any():
            raise DataError(f"predictions of {model!r}, seed {seed}: scan {keys[keys.duplicated()].iloc[0]} twice")
        if keys.tolist() != first.tolist():
            raise DataError(f"predictions of {model!r}: seeds {seeds[0]} and {seed} scored different scans of {split}")
    values = np.stack([part[column].to_numpy() for part in parts.values()])
    return Predicted(model, split, parts[seeds[0]], values, seeds)


def stream(seed: int, split: str) -> list[int]:
    """Seed of the resamples: independent between splits, the same for every model."""
    return [seed, SPLITS.index(split)]


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.iloc[np.argsort(scan_keys(rows).to_numpy(dtype=str), kind="stable")]
