"""Split-conformal intervals: the size of errors on people held back says how far off the next person may be.

n calibration people, m new scans. With scores s_i = |y_i - p_i| (or that over a predicted sd) and q the
ceil((n + 1) coverage)-th smallest of them, p +- q holds the truth of a new person with probability at least `coverage`,
and at most 1 / (n + 1) more where no two scores are equal, whatever the model, provided that calibration people and new
person are exchangeable and were not fitted on (Papadopoulos et al. 2002; Lei et al. 2018, theorem 2.2). People of other
sites or patients are not exchangeable with those of calibration: there the coverage found is a finding, not a defect.

One randomly drawn scan stands for each calibration person, since scans of one person are not exchangeable with other
people's: the promise is for a random scan of a new person (Dunn, Wasserman and Ramdas 2023, "subsampling once").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from brainage.errors import DataError, LeakageError

_ROUNDING = 1e-9  # 0.9 x 30 must not become 28


class Conformal(NamedTuple):
    """`radius` in years, or in predicted standard deviations where `scaled`; infinite with too few people."""

    radius: float
    scaled: bool
    people: int

    def interval(self, predicted: np.ndarray, sd: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Low and high [m]."""
        if self.scaled != (sd is not None):
            raise DataError(
                "conformal interval: a predicted sd goes with scores over a predicted sd, and only with them"
            )
        half = self.radius if sd is None else self.radius * sd
        return predicted - half, predicted + half


def calibrate(
    truth: np.ndarray,
    predicted: np.ndarray,
    persons: np.ndarray,
    *,
    coverage: float,
    seed: int,
    sd: np.ndarray | None = None,
) -> Conformal:
    """From truth, prediction and person of each calibration scan [n]; `sd` [n] above 0 scales the scores.

    Persons are to be neither fitted on nor scored: see `refuse_reuse`. Raises DataError on values that are not finite.
    """
    scores = np.abs(np.asarray(truth, dtype=np.float64) - predicted) / (1.0 if sd is None else sd)
    if not np.isfinite(scores).all():
        raise DataError(f"conformal: {int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    one = one_scan_a_person(persons, seed)
    return Conformal(conformal_quantile(scores[one], coverage), sd is not None, len(one))


def conformal_quantile(scores: np.ndarray, coverage: float) -> float:
    """The ceil((n + 1) coverage)-th smallest score; infinite when there are not so many.

    >>> conformal_quantile(np.arange(1.0, 10.0), 0.9), conformal_quantile(np.arange(1.0, 9.0), 0.9)
    (9.0, inf)
    """
    if not 0 < coverage < 1:
        raise DataError(f"conformal: expected a coverage between 0 and 1, found {coverage}")
    place = int(np.ceil((len(scores) + 1) * coverage - _ROUNDING))
    return float(np.partition(scores, place - 1)[place - 1]) if place <= len(scores) else np.inf


def fewest_for(coverage: float) -> int:
    """The fewest people that give a finite interval.

    >>> fewest_for(0.9), fewest_for(0.95)
    (9, 19)
    """
    return int(np.ceil(coverage / (1 - coverage) - _ROUNDING))


def one_scan_a_person(persons: np.ndarray, seed: int) -> np.ndarray:
    """[P] row of one scan of each person, drawn by the seed; the order of the people is that of their names."""
    shuffled = np.random.default_rng(seed).permutation(len(persons))
    _, first = np.unique(np.asarray(persons)[shuffled], return_index=True)
    return shuffled[first]


def refuse_reuse(calibration: Iterable[str], fitted: Iterable[str], scored: Iterable[str]) -> None:
    """Raise LeakageError naming a calibration person who was fitted on, or is scored too."""
    for others, what in ((fitted, "fitted on"), (scored, "scored")):
        both = sorted(set(calibration) & set(others))
        if both:
            raise LeakageError(
                f"conformal: {len(both)} people of the calibration are {what} too, first {both[0]}; calibrate on others"
            )
