"""Time to an event with right censoring: Cox regression, Kaplan-Meier, log-rank (statsmodels), Harrell's concordance.

n people, one row each, K terms, R resamples. All of it takes a time as exact and censoring as saying nothing about the
event to come.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.stats import norm, pearsonr, rankdata

from brainage.errors import DataError
from brainage.statistics.bootstrap import Interval

FEWEST_EVENTS = 10  # below, no regression
_WIDE = 5.0  # standard error of a log hazard ratio per sd of its term: events that a term tells apart wholly
_CHUNK_VALUES = 5_000_000  # pairs held at once: 40 MB an array


@dataclass(frozen=True)
class CoxFit:
    """Log hazard ratios per unit of each term, Wald; `drift_p`: p of a ratio that changes over time."""

    names: tuple[str, ...]
    estimate: np.ndarray  # [K]
    error: np.ndarray  # [K] standard errors
    drift_p: np.ndarray  # [K]
    people: int
    events: int

    def hazard_ratio(self, name: str, level: float = 0.95) -> tuple[Interval, float]:
        """Ratio of the hazards one unit apart with its interval, and the two-sided p of its being 1."""
        place = self.names.index(name)
        value, error = self.estimate[place], self.error[place]
        half = norm.ppf(0.5 + level / 2) * error
        low, middle, high = np.exp([value - half, value, value + half])
        return Interval(float(middle), float(low), float(high)), float(2 * norm.sf(abs(value) / error))


def fit_cox(time: np.ndarray, event: np.ndarray, terms: pd.DataFrame) -> CoxFit:
    """Cox regression of `time` [n] above 0 with `event` [n] bool on `terms` [n, K]; Efron's ties.

    `drift_p` is the p of Pearson's correlation between the Schoenfeld residuals of a term and the ranks of the event
    times: a simple form of the check of proportional hazards of Grambsch and Therneau (1994), unscaled. Raises
    DataError on fewer than FEWEST_EVENTS events, terms that say the same, values that are not finite, and where it does
    not converge.
    """
    from statsmodels.duration.hazard_regression import PHReg

    times, happened = _checked(time, event)
    values = terms.to_numpy(dtype=float)
    if happened.sum() < FEWEST_EVENTS:
        raise DataError(f"Cox regression: expected {FEWEST_EVENTS} events or more, found {int(happened.sum())}")
    if not np.isfinite(values).all():
        raise DataError("Cox regression: terms that are not finite; leave those people out, and count them")
    spread = values.std(axis=0)
    centred = values - values.mean(axis=0)
    if not spread.all() or np.linalg.matrix_rank(centred / np.where(spread > 0, spread, 1)) < values.shape[1]:
        raise DataError(f"Cox regression: the terms {', '.join(map(str, terms.columns))} are not told apart")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # judged by the standard errors below
        try:
            fit = PHReg(times, centred / spread, status=happened.astype(float), ties="efron").fit()
            estimate, error = np.asarray(fit.params), np.asarray(fit.bse)
        except np.linalg.LinAlgError:
            estimate = error = np.full(values.shape[1], np.nan)
        if not (np.isfinite(estimate).all() and (error < _WIDE).all()):
            raise DataError("Cox regression: does not converge (a term may tell the events apart wholly)")
        residuals = np.asarray(fit.schoenfeld_residuals)[happened]
    ranks = rankdata(times[happened])
    drift = [pearsonr(ranks, column).pvalue if np.ptp(ranks) > 0 else np.nan for column in residuals.T]
    return CoxFit(
        tuple(map(str, terms.columns)), estimate / spread, error / spread, np.array(drift), len(times),
        int(happened.sum()),
    )  # fmt: skip


def _checked(time: np.ndarray, event: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    times, happened = np.asarray(time, dtype=float), np.asarray(event, dtype=bool)
    if not (np.isfinite(times) & (times > 0)).all():
        raise DataError(
            f"survival: {int((~(times > 0)).sum())} times that are not above 0; expected years of follow-up"
        )
    return times, happened


def converted_by(time: np.ndarray, event: np.ndarray, years: float, level: float = 0.95) -> Interval:
    """Share with the event by `years` (1 minus Kaplan-Meier), interval by Greenwood on the log(-log) scale.

    NaN where everybody's follow-up ends earlier.

    >>> converted_by(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, False]), 3.5).estimate
    0.625
    """
    from statsmodels.duration.survfunc import SurvfuncRight

    times, happened = _checked(time, event)
    if times.max() < years:
        return Interval(np.nan, np.nan, np.nan)
    curve = SurvfuncRight(times, happened.astype(float))
    place = int(np.searchsorted(curve.surv_times, years, side="right")) - 1
    left = float(curve.surv_prob[place]) if place >= 0 else 1.0
    if not 0 < left < 1:
        return Interval(1 - left, np.nan, np.nan)
    wide = norm.ppf(0.5 + level / 2) * float(curve.surv_prob_se[place]) / (left * abs(np.log(left)))
    return Interval(1 - left, float(1 - left ** np.exp(-wide)), float(1 - left ** np.exp(wide)))


def logrank_p(time: np.ndarray, event: np.ndarray, stratum: np.ndarray) -> float:
    """p of the log-rank test that two or more strata [n] have the same hazard; NaN without two or without an event."""
    from statsmodels.duration.survfunc import survdiff

    times, happened = _checked(time, event)
    if len(np.unique(stratum)) < 2 or not happened.any():
        return np.nan
    return float(survdiff(times, happened.astype(float), np.asarray(stratum))[1])


def concordance(time: np.ndarray, event: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] Harrell's C (1982): of the pairs whose earlier one had the event, the share whose earlier one scores higher.

    `weights` [R, n] count how often a person is there. Equal scores count one half; of two at one time, one with the
    event and one without, the one with it is the earlier, two events at one time are no pair. NaN without a pair.
    Raises DataError on times that are not above 0 and scores that are not finite.

    >>> time, event = np.array([1.0, 2.0, 3.0]), np.array([True, False, True])
    >>> concordance(time, event, np.array([5.0, 9.0, 1.0]), np.ones((1, 3)))
    array([0.5])
    """
    times, happened = _checked(time, event)
    values = np.asarray(score, dtype=float)
    if not np.isfinite(values).all():
        raise DataError(f"concordance: {int((~np.isfinite(values)).sum())} scores that are not finite; leave them out")
    clock = 2 * np.unique(times, return_inverse=True)[1] + ~happened  # of a pair the earlier one has the smaller one
    agreed, pairs = _agreed(clock, values, happened, weights), _later(clock, happened, weights)
    with np.errstate(invalid="ignore"):
        return np.where(pairs > 0, agreed / np.where(pairs > 0, pairs, 1), np.nan)


def _later(clock: np.ndarray, happened: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] weight of all pairs, by sums over people in order of time."""
    order = np.argsort(clock, kind="stable")
    until = np.cumsum(weights[:, order], axis=1)
    place = np.searchsorted(clock[order], clock[happened], side="right") - 1
    return np.einsum("re,re->r", weights[:, happened], until[:, -1:] - until[:, place])


def _agreed(clock: np.ndarray, score: np.ndarray, happened: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R] weight of the pairs whose earlier one scores higher, ties half.

    Time and score are cut into B blocks each, B the root of the events. Pairs in different blocks of both are counted
    by sums over tables of B x B weights, those in one block of either one by one: about a share 2 / B of all.
    """
    blocks = max(1, int(happened.sum() ** 0.5))
    when, what = _blocks(clock, happened, blocks), _blocks(score, happened, blocks)
    everybody, events = (
        (_cells(when * blocks + what, chosen, blocks**2) @ weights.T).reshape(blocks, blocks, -1)
        for chosen in (np.ones(len(clock)), happened.astype(float))
    )
    lower = np.cumsum(everybody[:, :-1], axis=1)[:0:-1]  # in lower blocks of score; of time, the last one first
    agreed = np.einsum("tsr,tsr->r", events[:-1, 1:], np.cumsum(lower, axis=0)[::-1])
    for groups, order in ((when, clock), (what, when)):  # the second: one block of score, later blocks of time
        for block in range(blocks):
            agreed += _one_by_one(np.flatnonzero(groups == block), order, score, happened, weights)
    return agreed


def _blocks(values: np.ndarray, happened: np.ndarray, count: int) -> np.ndarray:
    """[n] numbers of blocks from 0 in the order of the values, of about as many events each."""
    if count == 1:
        return np.zeros(len(values), dtype=int)
    edges = np.quantile(values[happened], np.arange(1, count) / count, method="lower")
    return np.searchsorted(edges, values, side="right")


def _cells(cell: np.ndarray, amounts: np.ndarray, count: int) -> csr_array:
    """[count, n] sums over the people of a cell."""
    return csr_array((amounts, (cell, np.arange(len(cell)))), shape=(count, len(cell)))


def _one_by_one(
    people: np.ndarray, order: np.ndarray, score: np.ndarray, happened: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """[R] weight of the pairs among `people` whose one with the event is earlier in `order` and scores higher."""
    total, mine = np.zeros(len(weights)), weights[:, people]
    first = people[happened[people]]
    step = max(1, _CHUNK_VALUES // max(len(people), 1))
    for start in range(0, len(first), step):
        rows = first[start : start + step]
        later = order[people] > order[rows, None]
        higher = np.sign(score[rows, None] - score[people]) / 2 + 0.5
        total += np.einsum("rn,rn->r", weights[:, rows] @ (later * higher), mine)
    return total
