"""What a few training seeds allow to be said: intervals of Student's t, and Holm's correction for many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from brainage.statistics.bootstrap import Interval


class SeedMean(NamedTuple):
    """`interval` and `p` are NaN with fewer than two seeds; `p` is two-sided, of a true mean of 0."""

    interval: Interval
    sd: float
    p: float
    seeds: int


def seed_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> SeedMean:
    """Mean over seeds with its t interval; of paired differences this is the paired t test (Student 1908).

    Values that are not finite are left out and not counted in `seeds`.

    >>> found = seed_interval([1.0, 2.0, 3.0])
    >>> found.interval.estimate, round(found.interval.low, 3), round(found.p, 4)
    (2.0, -0.484, 0.0742)
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    n = len(known)
    mean = float(known.mean()) if n else np.nan
    if n < 2:
        return SeedMean(Interval(mean, np.nan, np.nan), np.nan, np.nan, n)
    sd = float(known.std(ddof=1))
    error = sd / math.sqrt(n)
    half = float(student.ppf(0.5 + level / 2, n - 1)) * error
    p = float(2 * student.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
    return SeedMean(Interval(mean, mean - half, mean + half), sd, p, n)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p values (1979); NaN stays NaN and is not counted as a comparison.

    >>> holm([0.01, 0.04, float("nan"), 0.03]).round(2).tolist()
    [0.03, 0.06, nan, 0.06]
    """
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
