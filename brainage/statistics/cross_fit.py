"""Healthy people who are scored too: each corrected by what was learnt from others.

n scans.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.errors import DataError
from brainage.statistics.bias import Correction, Scans


class CrossFit(NamedTuple):
    """All arrays [n]; NaN and -1 for scans that are not scored."""

    gap_years: np.ndarray
    fold: np.ndarray  # int64: of the correction that a scan got; -1: fitted on other people altogether
    note: str
    whole: Correction  # the one fitted on all of `correct`
    dealt: np.ndarray  # int64 [P]: fold of each of whole.persons_, scored or not; -1 where nobody is cross-fitted


def cross_fit(
    correction: Correction,
    table: Scans | pd.DataFrame,
    predicted_years: np.ndarray,
    correct: np.ndarray,
    score: np.ndarray,
    *,
    seed: int,
    folds: int = 5,
) -> CrossFit:
    """Corrected gaps of the scored, each by a correction that was fitted on other people.

    `correct`, `score` bool [n]: the healthy people to fit on, and the scans to be corrected. Scored people who are also
    fitted on get the correction fitted on the other folds of people; everybody else, patients above all, the one
    fitted on all of `correct`. Raises what `fit` raises, of a fold too.
    """
    scans = table if isinstance(table, Scans) else Scans.of(table)
    predicted = np.asarray(predicted_years, dtype=np.float64)
    if correct.sum() == 0:
        raise DataError(f"bias correction {correction.name!r}: nobody healthy to fit on; see evaluate.correct_on")
    gap, fold = np.full(len(predicted), np.nan), np.full(len(predicted), -1)
    whole = _fitted(correction, scans, predicted, correct)
    own = score & np.isin(scans.persons, scans.persons[correct])
    others = score & ~own
    gap[others] = whole.transform(scans.at(others), predicted[others])
    dealt = np.full(len(whole.persons_), -1)
    if own.any():  # np.unique sorts persons by number: the order of the rows is of no consequence
        order = np.random.default_rng(seed).permutation(len(dealt))
        dealt[order] = np.arange(len(dealt)) % folds
        for number in range(folds):
            here = np.isin(scans.persons, whole.persons_[dealt == number])
            part, rows = _fitted(correction, scans, predicted, correct & ~here), own & here
            gap[rows], fold[rows] = part.transform(scans.at(rows), predicted[rows]), number
    outside = whole.outside(scans.age_years[score])
    return CrossFit(gap, fold, _note(whole, len(outside), int(outside.sum()), folds if own.any() else 0), whole, dealt)


def _note(whole: Correction, scans: int, outside: int, folds: int) -> str:
    low, high = whole.age_range_
    fitted = f"{whole.describe()}; correction fitted on {len(whole.persons_)} people of {low:.0f}-{high:.0f} years"
    crossed = ", cross-fitted: healthy people get that of the other folds" if folds else ", none of whom is scored"
    return f"{fitted}{crossed}" + (f"; {outside} of {scans} scans outside these ages: extrapolated" if outside else "")


def _fitted(correction: Correction, scans: Scans, predicted: np.ndarray, rows: np.ndarray) -> Correction:
    return copy.copy(correction).fit(scans.at(rows), predicted[rows])
