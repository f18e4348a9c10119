"""How well scores tell two classes apart: ROC and precision-recall, their areas, and DeLong's variance.

n people, R resamples, M score vectors, G points of a grid. Truth is 0 or 1, a higher score speaks for 1. The metrics
are weighted functions as in `metrics`: truth [n], scores [n], weights [R, n] -> [R], the value that scikit-learn gives
for people repeated so often; NaN where a resample lacks a class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from brainage.statistics.bootstrap import Interval, replicates

GRID = np.linspace(0.0, 1.0, 101)
_LEAST_PROBABILITY = 1e-6  # probabilities are kept this far from 0 and 1 before their log odds are taken
_LEAST_SPREAD = 0.05  # sd of log odds below which a slope on them says nothing: about a hundredth in probability
_NEWTON_STEPS = 50

CurvePoints = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def auc(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Chance that somebody of class 1 scores higher than somebody of class 0, ties counting half (Mann-Whitney).

    >>> truth, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.4, 0.8])
    >>> auc(truth, scores, np.array([[1.0, 1, 1, 1], [1.0, 1, 2, 0]])).tolist()
    [0.875, 0.75]
    """
    order = np.argsort(scores, kind="stable")  # both classes in order of score: neighbours in memory
    is_case = np.asarray(truth)[order] == 1
    case, control = order[is_case], order[~is_case]
    below = np.zeros((len(weights), len(control) + 1))  # weight of the controls below each rank
    np.cumsum(np.take(weights, control, axis=1), axis=1, out=below[:, 1:])
    cases = np.take(weights, case, axis=1)
    low = np.searchsorted(scores[control], scores[case], side="left")
    high = np.searchsorted(scores[control], scores[case], side="right")
    wins = np.einsum("rn,rn->r", cases, np.take(below, low, axis=1))
    if (low != high).any():
        wins = 0.5 * (wins + np.einsum("rn,rn->r", cases, np.take(below, high, axis=1)))
    return _ratio(wins, cases.sum(axis=1) * below[:, -1])


def average_precision(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum over thresholds of precision x gained recall, without interpolation (scikit-learn's definition).

    Its chance level is the share of class 1, not 0.5.
    """
    order = np.argsort(-scores, kind="stable")
    case = truth[order] == 1
    if case.any() and len(np.unique(scores)) == len(scores):  # thresholds are scans: those of cases alone gain recall
        ranked = weights[:, order]
        gained, called = ranked[:, case], np.cumsum(ranked, axis=1)[:, case]
        found = np.cumsum(gained, axis=1)
        return _ratio((gained * _ratio(found, called, 0.0)).sum(axis=1), found[:, -1])
    found, called = _cumulated(truth, scores, weights)
    gained = np.diff(found, axis=1, prepend=0.0)
    return _ratio((gained * _ratio(found, called, 0.0)).sum(axis=1), found[:, -1])


def brier(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean squared difference of probability and truth (Brier 1950); 0 is perfect."""
    return (weights @ (scores - truth) ** 2) / weights.sum(axis=1)


def roc_points(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Sensitivity [R, G] at each false-positive rate of `grid`: straight between thresholds, the upper end of steps."""
    found, called = _cumulated(truth, scores, weights)
    sensitivity = _ratio(found, found[:, -1:])
    false_positive = _ratio(called - found, (called - found)[:, -1:])
    pairs = zip(false_positive, sensitivity, strict=True)
    return np.stack([np.interp(grid, np.append(0.0, x), np.append(0.0, y)) for x, y in pairs])


def pr_points(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Precision [R, G] at the highest threshold whose recall reaches each value of `grid`."""
    found, called = _cumulated(truth, scores, weights)
    recall, precision = _ratio(found, found[:, -1:]), _ratio(found, called)
    rows: list[np.ndarray] = []
    for reached, values in zip(recall, precision, strict=True):
        first = int(np.argmax(called[len(rows)] > 0))  # thresholds that a resample has nobody above have no precision
        at = np.maximum(np.searchsorted(reached, grid - 1e-12), first)
        rows.append(values[np.minimum(at, len(values) - 1)])
    return np.stack(rows)


class CurveBand(NamedTuple):
    """Arrays [G]; `low` and `high` hold 95 % of the resamples at each point by itself, not the whole curve at once."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve_band(
    points: CurvePoints,
    truth: np.ndarray,
    scores: np.ndarray,
    persons: np.ndarray,
    *,
    resamples: int,
    seed: int | Sequence[int],
    grid: np.ndarray = GRID,
) -> CurveBand:
    """A curve (`roc_points` or `pr_points`) on a fixed grid with its bootstrap band over people."""
    truth, scores = np.asarray(truth), np.asarray(scores, dtype=np.float64)
    statistic = {"curve": lambda weights: points(truth, scores, weights, grid)}
    values = replicates(statistic, persons, resamples=resamples, seed=seed)["curve"]
    defined = values[1:][np.isfinite(values[1:]).all(axis=1)]
    nothing = np.full(len(grid), np.nan)
    low, high = np.percentile(defined, [2.5, 97.5], axis=0) if len(defined) else (nothing, nothing)
    return CurveBand(grid, values[0], low, high)


class DeLong(NamedTuple):
    """`auc` [M] with its `covariance` [M, M] over the people, of M score vectors for the same people."""

    auc: np.ndarray
    covariance: np.ndarray


def delong(truth: np.ndarray, scores: np.ndarray) -> DeLong:
    """AUC of each row of `scores` [M, n] and their covariance (DeLong, DeLong and Clarke-Pearson 1988).

    By midranks in n log n instead of all pairs (Sun and Xu 2014, theorem 1). NaN with fewer than two people in a class.
    """
    scores = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    case = np.asarray(truth) == 1
    cases, controls = int(case.sum()), int((~case).sum())
    if min(cases, controls) < 2:
        return DeLong(auc_rows(truth, scores), np.full((len(scores), len(scores)), np.nan))
    of_case, of_control = placements(truth, scores)
    covariance = np.atleast_2d(np.cov(of_case)) / cases + np.atleast_2d(np.cov(of_control)) / controls
    return DeLong(of_case.mean(axis=1), covariance)


def placements(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the controls that each case beats [M, cases] and of the cases that beat each control [M, controls], ties
    counting half, of each row of `scores` [M, n].
    """
    case = np.asarray(truth) == 1
    cases, controls = int(case.sum()), int((~case).sum())
    ranks = rankdata(scores, axis=1)
    of_case = (ranks[:, case] - rankdata(scores[:, case], axis=1)) / controls
    of_control = 1 - (ranks[:, ~case] - rankdata(scores[:, ~case], axis=1)) / cases
    return of_case, of_control


def auc_rows(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """AUC [M] of each row of `scores` [M, n]."""
    return np.array([auc(truth, row, np.ones((1, len(row))))[0] for row in scores])


def delong_interval(area: float, variance: float, level: float = 0.95) -> Interval:
    """Wald interval on the log odds of the AUC, so that it stays within 0 and 1 (Pepe 2003, section 5.2.5).

    No interval where the classes are told apart without an error (or always wrongly): the variance is 0 there.

    >>> round(delong_interval(0.8, 0.0025).low, 3), delong_interval(1.0, 0.0).low
    (0.684, nan)
    """
    if not np.isfinite(variance) or variance <= 0 or not 0 < area < 1:
        return Interval(float(area), np.nan, np.nan)
    half = norm.ppf(0.5 + level / 2) * np.sqrt(variance) / (area * (1 - area))
    return Interval(float(area), *(float(expit(logit(area) + side * half)) for side in (-1, 1)))


def delong_test(
    found: DeLong, first: int, second: int, *, widen: float = 1.0, level: float = 0.95
) -> tuple[Interval, float]:
    """AUC of `first` minus that of `second` on the same people, its plain Wald interval and two-sided p value.

    `widen` multiplies the variance. Scores that rank everybody alike have p = 1; a variance that cannot be computed
    gives NaN.
    """
    difference = float(found.auc[first] - found.auc[second])
    c = found.covariance
    variance = float(c[first, first] + c[second, second] - 2 * c[first, second]) * widen
    if not variance > 1e-14:  # equal up to rounding, or NaN
        return Interval(difference, np.nan, np.nan), 1.0 if abs(difference) < 1e-12 and variance == variance else np.nan
    error = np.sqrt(variance)
    half = float(norm.ppf(0.5 + level / 2) * error)
    return Interval(difference, difference - half, difference + half), float(2 * norm.sf(abs(difference) / error))


class Calibration(NamedTuple):
    slope: Interval
    intercept: Interval


def calibration(truth: np.ndarray, probabilities: np.ndarray, level: float = 0.95) -> Calibration:
    """Logistic recalibration of probabilities [n]: log odds of truth = intercept + slope x log odds of the probability.

    Perfect are slope 1 and intercept 0; a slope below 1 means too extreme probabilities (Cox 1958; Steyerberg 2019,
    section 15.2). Maximum likelihood with Wald intervals. NaN where the log odds hardly vary (sd below
    0.05), one class is absent, or the classes are told apart without an error (no finite maximum).
    """
    x = logit(np.clip(probabilities, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY))
    y = np.asarray(truth, dtype=np.float64)
    nothing = Calibration(Interval(np.nan, np.nan, np.nan), Interval(np.nan, np.nan, np.nan))
    separable = len(np.unique(y)) < 2 or x[y == 1].min() >= x[y == 0].max() or x[y == 1].max() <= x[y == 0].min()
    if separable or x.std() < _LEAST_SPREAD:
        return nothing
    design, centre, spread = np.column_stack([np.ones_like(x), (x - x.mean()) / x.std()]), x.mean(), x.std()
    found = _newton(design, y)
    if found is None:
        return nothing
    beta, covariance = found
    back = np.array([[1.0, -centre / spread], [0.0, 1 / spread]])  # to the unit of the log odds
    beta, error = back @ beta, np.sqrt(np.diag(back @ covariance @ back.T))
    half = norm.ppf(0.5 + level / 2) * error
    intercept, slope = (Interval(*(float(v) for v in (b, b - h, b + h))) for b, h in zip(beta, half, strict=True))
    return Calibration(slope, intercept)


class ReliabilityBin(NamedTuple):
    """`low` and `high`: 95 % of the observed share, by Wilson (1927)."""

    predicted: float
    observed: float
    low: float
    high: float
    n: int


def reliability(truth: np.ndarray, probabilities: np.ndarray, bins: int = 10, fewest: int = 5) -> list[ReliabilityBin]:
    """Mean probability and observed share of class 1 in bins of about equally many people, at least `fewest` each.

    People of one probability are never parted, so that there may be fewer bins.
    """
    order = np.argsort(probabilities, kind="stable")
    p, y = np.asarray(probabilities, dtype=np.float64)[order], np.asarray(truth, dtype=np.float64)[order]
    wanted = np.arange(1, bins) * len(p) // bins
    edges = [0, *dict.fromkeys(np.searchsorted(p, p[wanted], side="left").tolist()), len(p)]
    kept = [0]
    for edge in edges[1:-1]:
        if edge - kept[-1] >= fewest and len(p) - edge >= fewest:
            kept.append(edge)
    return [_bin(p[a:b], y[a:b]) for a, b in zip(kept, [*kept[1:], len(p)], strict=True) if b - a >= fewest]


def _bin(p: np.ndarray, y: np.ndarray, level: float = 0.95) -> ReliabilityBin:
    n, share, z = len(y), float(y.mean()), float(norm.ppf(0.5 + level / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return ReliabilityBin(float(p.mean()), share, float(centre - half), float(centre + half), n)


def _newton(design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Coefficients of an unpenalised logistic regression and their covariance; None where it does not converge."""
    beta = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = expit(design @ beta)
        information = design.T @ (design * (p * (1 - p))[:, None])
        if np.linalg.cond(information) > 1e12:
            return None
        step = np.linalg.solve(information, design.T @ (y - p))
        beta = beta + step / max(1.0, np.abs(step).max() / 4)  # shorter where the curvature is far from constant
        if np.abs(step).max() < 1e-10:
            return beta, np.linalg.inv(information)
    return None


def _cumulated(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of class 1 and of everybody [R, T] at or above each of the T distinct scores, highest first."""
    order = np.argsort(-scores, kind="stable")
    ranked = weights[:, order]
    last = np.append(scores[order][1:] != scores[order][:-1], True)  # ties enter together
    found = np.cumsum(ranked * (np.asarray(truth)[order] == 1), axis=1)
    called = np.cumsum(ranked, axis=1)
    return (found, called) if last.all() else (found[:, last], called[:, last])


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.full(above.shape, otherwise), where=below > 0)
