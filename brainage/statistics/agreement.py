"""Test-retest agreement: intraclass correlations and the error of one measurement.

n people, k measurements of each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import chi2
from scipy.stats import f as fisher

from brainage.errors import DataError
from brainage.statistics.bootstrap import Interval


class Agreement(NamedTuple):
    icc_agreement: Interval  # ICC(A,1): absolute agreement, measurements in an order (first, second, ...)
    icc_oneway: Interval  # ICC(1,1): measurements of a person in no order
    sd_within: Interval  # sd of one measurement about a person's own mean, the standard error of measurement


def agreement(values: np.ndarray, level: float = 0.95) -> Agreement:
    """`values` [n, k]. Intervals by F and chi square (McGraw and Wong 1996, tables 4 and 7; normal errors).

    Of measurements that differ by a constant shift ICC(A,1) is below 1. A negative estimate means no agreement. Raises
    DataError on fewer than two people or measurements, values that are not finite, or nothing that varies.

    >>> found = agreement(np.array([[1.0, 1.0], [2.0, 3.0], [4.0, 4.0], [6.0, 5.0]]))
    >>> round(found.icc_agreement.estimate, 4), round(found.icc_oneway.estimate, 4), found.sd_within.estimate
    (0.9348, 0.9355, 0.5)
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        raise DataError(f"agreement: expected finite values [n >= 2, k >= 2], found shape {values.shape}")
    n, k = values.shape
    people, times = values.mean(axis=1), values.mean(axis=0)
    rows = k * float(((people - values.mean()) ** 2).sum()) / (n - 1)
    within = float(((values - people[:, None]) ** 2).sum()) / (n * (k - 1))
    columns = n * float(((times - values.mean()) ** 2).sum()) / (k - 1)
    error = max(float(((values - people[:, None] - times + values.mean()) ** 2).sum()) / ((n - 1) * (k - 1)), 0.0)
    if rows + within <= 1e-20:
        raise DataError("agreement: the values do not vary")
    return Agreement(
        _agreement(rows, columns, error, n, k, level),
        _oneway(rows, within, n, k, level),
        _sd(within, n * (k - 1), level),
    )


def _oneway(rows: float, within: float, n: int, k: int, level: float) -> Interval:
    if within == 0:
        return Interval(1.0, 1.0, 1.0)
    ratio, tail = rows / within, 0.5 + level / 2
    low = ratio / fisher.ppf(tail, n - 1, n * (k - 1))
    high = ratio * fisher.ppf(tail, n * (k - 1), n - 1)
    return Interval(*(float((r - 1) / (r + k - 1)) for r in (ratio, low, high)))


def _agreement(rows: float, columns: float, error: float, n: int, k: int, level: float) -> Interval:
    estimate = (rows - error) / (rows + (k - 1) * error + k * (columns - error) / n)
    if estimate >= 1 or columns + error == 0:
        return Interval(1.0, 1.0, 1.0)
    tail, odds = 0.5 + level / 2, k * estimate / (n * (1 - estimate))
    a, b = odds * columns, (1 + odds * (n - 1)) * error
    df = (a + b) ** 2 / (a**2 / (k - 1) + b**2 / ((n - 1) * (k - 1)))  # Satterthwaite
    lower, upper = fisher.ppf(tail, n - 1, df), fisher.ppf(tail, df, n - 1)
    rest = k * columns + (k * n - k - n) * error
    low = n * (rows - lower * error) / (lower * rest + n * rows)
    high = n * (upper * rows - error) / (rest + n * upper * rows)
    return Interval(float(estimate), float(low), float(high))


def _sd(variance: float, df: int, level: float) -> Interval:
    tail = 0.5 + level / 2
    low, high = (np.sqrt(df * variance / chi2.ppf(q, df)) for q in (tail, 1 - tail))
    return Interval(float(np.sqrt(variance)), float(low), float(high))
