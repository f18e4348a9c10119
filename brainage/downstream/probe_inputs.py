"""What the age probes beyond ridge share: checked input, standardised features, scores of folds.

n scans, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from brainage.downstream.results import EDGE
from brainage.errors import DataError

_ROUNDING = 1e-6  # spread, as a share of the largest value, that float32 cannot tell from none


class Scaling(NamedTuple):
    """Columns that vary over the fitted rows, to mean 0 and standard deviation 1 there."""

    columns: int  # D, constant ones included
    kept: np.ndarray  # indices
    mean: np.ndarray  # [kept]
    sd: np.ndarray  # [kept]

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """[n, kept]. Raises DataError on another number of columns."""
        if X.shape[1] != self.columns:
            raise DataError(f"age probe: fitted on {self.columns} features, found {X.shape[1]}")
        return (X[:, self.kept] - self.mean) / self.sd


def fitted_scaling(X: np.ndarray) -> Scaling:
    """Raises DataError when every column is constant up to rounding."""
    mean, sd = X.mean(axis=0), X.std(axis=0)
    kept = np.flatnonzero(sd > _ROUNDING * np.abs(X).max(axis=0))
    if len(kept) == 0:
        raise DataError(f"age probe: all {X.shape[1]} features are constant over the {len(X)} fitted scans")
    return Scaling(X.shape[1], kept, mean[kept], sd[kept])


def checked(X: np.ndarray, y: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """float64 features [n, D] and ages [n] (none where not asked). Raises DataError on what is not finite."""
    X = np.asarray(X, dtype=np.float64)
    y = np.zeros(len(X)) if y is None else np.asarray(y, dtype=np.float64)
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise DataError(f"age probe: expected features of shape ({len(y)}, D), found {X.shape}")
    for what, broken in (("rows of features", ~np.isfinite(X).all(axis=1)), ("ages", ~np.isfinite(y))):
        if broken.any():
            raise DataError(f"age probe: {int(broken.sum())} of {len(X)} {what} are not finite")
    return X, y


def fold_scores(y: np.ndarray, predicted: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Mean R2 over folds [C] of (held-out rows, predictions [rows, C]); 0 for a fold of one age, as scikit-learn."""
    scores = []
    for rows, values in predicted:
        total = ((y[rows] - y[rows].mean()) ** 2).sum()
        error = ((y[rows, None] - values) ** 2).sum(axis=0)
        scores.append(1 - error / total if total > 0 else np.zeros_like(error))
    return np.mean(scores, axis=0)


def on_edge(chosen: float, grid: Sequence[float]) -> str:
    return f" {EDGE}" if len(grid) > 1 and chosen in (min(grid), max(grid)) else ""
