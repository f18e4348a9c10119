"""Robust location, spread and smooth fits: what a few wrong values cannot move.

Legend: n values, one a scan; p columns of a design.
"""

from __future__ import annotations

import numpy as np

NORMAL = 1.4826  # median absolute deviation of a standard normal, inverted
HUBER = 1.345  # 95 % efficient under normal errors (Huber 1981)
KNOTS = (0.05, 0.35, 0.65, 0.95)  # quantiles of age, Harrell 2001, section 2.4.6
_ROUNDS = 30


def limits(values: np.ndarray, k: float, least_scale: float = 0.0) -> tuple[float, float]:
    """Median minus k scales of the values below it, and plus k scales of those above it (Leys et al. 2013).

    The scale is 1.4826 x the median absolute deviation, of each side by itself because quality measures are skewed, and
    `least_scale` at least because measures that hardly vary would otherwise flag every rounding. NaN are left out; of
    no value both limits are infinite.

    >>> low, high = limits(np.array([1.0, 2, 3, 4, 5, 1000]), k=3)
    >>> round(low, 3), round(high, 3)
    (-3.172, 10.172)
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return -np.inf, np.inf
    middle = float(np.median(values))
    below, above = middle - values[values <= middle], values[values >= middle] - middle
    low, high = (max(NORMAL * float(np.median(side)), least_scale) for side in (below, above))
    return middle - k * low, middle + k * high


def natural_spline(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """[n, p] intercept, x, and one column for each knot but two: cubic between the knots, straight beyond them.

    Hastie, Tibshirani and Friedman 2009, equation 5.4, with x in units of the knots' range. Equal knots count once;
    of fewer than three there is a straight line.
    """
    knots = np.unique(knots)
    width = max(float(knots[-1] - knots[0]), 1e-9)
    t, k = (x - knots[0]) / width, (knots - knots[0]) / width
    columns = [np.ones_like(t), t]
    if len(k) > 2:
        cubes = np.clip(t[:, None] - k, 0, None) ** 3
        slopes = (cubes[:, :-1] - cubes[:, -1:]) / (k[-1] - k[:-1])
        columns += list((slopes[:, :-1] - slopes[:, -1:]).T)
    return np.column_stack(columns)


def huber_fit(design: np.ndarray, values: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Fitted values [n], leverages [n] and residual scale of a regression on `rows` (bool [n]) by Huber's weights.

    Iteratively reweighted least squares, the scale 1.4826 x MAD of the residuals. A leverage is the share of its own
    fitted value that a row decides, 0 for those not fitted on.
    """
    X, y = design[rows], values[rows]
    weights, scale = np.ones(len(y)), 0.0
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)[:, None]
        beta = np.linalg.lstsq(X * root, y * root[:, 0], rcond=None)[0]
        residuals = y - X @ beta
        scale = NORMAL * float(np.median(np.abs(residuals - np.median(residuals))))
        if scale <= 1e-12:
            break
        wanted = np.minimum(1.0, HUBER * scale / np.maximum(np.abs(residuals), 1e-300))
        settled, weights = np.abs(wanted - weights).max() < 1e-6, wanted
        if settled:
            break
    inverse = np.linalg.pinv(X.T @ (X * weights[:, None]))
    leverage = np.zeros(len(values))
    leverage[rows] = np.clip(np.einsum("ij,jk,ik->i", X, inverse, X) * weights, 0, 1 - 1e-6)
    return design @ beta, leverage, scale


def z_given(values: np.ndarray, age_years: np.ndarray, is_male: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Robust z-score [n] of each value given age and sex, NaN where a number is missing or none can be judged.

    The expectation is a natural cubic spline of age (knots at KNOTS of the rows fitted on) plus a sex difference,
    fitted by Huber's weights on `rows` (bool [n], e.g. the healthy). z = residual / (scale x sqrt(1 - leverage)), the
    internally studentised residual, so that somebody alone at an end of the age range is judged by the others.
    """
    known = np.isfinite(values) & np.isfinite(age_years)
    rows = rows & known
    z = np.full(len(values), np.nan)
    if not rows.any():
        return z
    knots = np.quantile(age_years[rows], KNOTS)
    design = np.column_stack([natural_spline(np.where(known, age_years, knots[0]), knots), is_male])
    fitted, leverage, scale = huber_fit(design, np.where(known, values, 0.0), rows)
    if scale > 1e-12:
        z[known] = ((values - fitted) / (scale * np.sqrt(1 - leverage)))[known]
    return z
