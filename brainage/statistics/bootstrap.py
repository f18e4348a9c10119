"""Percentile intervals by resampling subjects: all scans of a person enter a resample together.

n scans, P persons, R resamples. A resample draws P persons with replacement; it is kept as integer weights [R, n] on
fixed predictions, so nothing is refitted: the intervals say how far a result depends on the people scored, not on the
people trained on, nor on the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]  # weights [R, n] -> values [R]

FEWEST_PERSONS = 5  # below, the resamples are too few and too alike for an interval
_CHUNK_VALUES = 500_000  # weights held at once: 4 MB, which caches hold


class Interval(NamedTuple):
    """`low` and `high` are NaN when there are too few people or resamples that define the statistic."""

    estimate: float
    low: float
    high: float


def bootstrap(
    statistics: Mapping[str, Statistic],
    persons: np.ndarray,
    *,
    resamples: int,
    seed: int | Sequence[int],
    level: float = 0.95,
) -> dict[str, Interval]:
    """Each statistic of the sample with its percentile interval; all statistics see the same resamples.

    `persons` [n] names the person behind each scan. Equal persons and seed give equal resamples whatever the order of
    the rows (Efron and Tibshirani 1993, chapter 13, with the person as the unit).

    >>> ages = np.array([20.0, 30.0, 40.0, 50.0, 60.0])
    >>> mean = {"mean": lambda weights: weights @ ages / weights.sum(axis=1)}
    >>> bootstrap(mean, np.arange(5), resamples=500, seed=0)["mean"].estimate
    40.0
    """
    drawn = replicates(statistics, persons, resamples=resamples, seed=seed)
    enough = len(np.unique(persons)) >= FEWEST_PERSONS
    return {name: interval(values[0], values[1:] if enough else values[:0], level) for name, values in drawn.items()}


def replicates(
    statistics: Mapping[str, Statistic], persons: np.ndarray, *, resamples: int, seed: int | Sequence[int]
) -> dict[str, np.ndarray]:
    """Name -> values [1 + R]: the statistic of the sample itself, then of every resample."""
    if len(persons) == 0:
        raise ValueError("bootstrap: expected at least one scan, found none")
    whole = np.ones((1, len(persons)))
    values = {name: [statistic(whole)] for name, statistic in statistics.items()}
    for weights in resample_weights(persons, resamples, seed):
        for name, statistic in statistics.items():
            values[name].append(statistic(weights))
    return {name: np.concatenate(chunks) for name, chunks in values.items()}


def resample_weights(persons: np.ndarray, resamples: int, seed: int | Sequence[int]) -> Iterator[np.ndarray]:
    """Chunks of weights [r, n], R rows in all: how often each scan's person was drawn."""
    names, codes = np.unique(persons, return_inverse=True)
    in_order = len(codes) == len(names) and bool((np.diff(codes) > 0).all())  # one scan each: nothing to spread
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_VALUES // max(len(persons), 1))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(0, len(names), size=(count, len(names)))
        drawn += np.arange(count)[:, None] * len(names)
        counts = np.bincount(drawn.ravel(), minlength=count * len(names)).reshape(count, len(names))
        weights = counts.astype(np.float64)
        yield weights if in_order else np.take(weights, codes, axis=1)


def interval(estimate: float, values: np.ndarray, level: float = 0.95) -> Interval:
    """The estimate with the percentiles of its replicates [R]; resamples that leave it undefined (NaN) are left out.

    No interval when more than a twentieth of them do: what is left would be a selection. Nor when the resamples hardly
    differ (a share of 0 or 1): an interval without width would say that another sample could not differ either.
    """
    defined = values[np.isfinite(values)]
    if not np.isfinite(estimate) or len(values) == 0 or len(defined) < 0.95 * len(values):
        return Interval(float(estimate), np.nan, np.nan)
    low, high = np.percentile(defined, [50 * (1 - level), 50 * (1 + level)])
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        return Interval(float(estimate), np.nan, np.nan)
    return Interval(float(estimate), float(low), float(high))


def seed_mean(
    metric: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], truth: np.ndarray, predicted: np.ndarray
) -> Statistic:
    """The mean of a metric over the rows of `predicted` [seeds, n], each scored with the same weights."""
    return lambda weights: np.mean([metric(truth, one, weights) for one in predicted], axis=0)
