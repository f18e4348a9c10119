"""Intervals of the gap of a group: its people resampled, and the correction refitted to resampled people.

n people of a group with one scan each, P people whom the corrections were fitted on, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import pandas as pd

from brainage.downstream.probes import people
from brainage.statistics.bias import Scans
from brainage.statistics.bootstrap import FEWEST_PERSONS, Interval, interval, resample_weights
from brainage.statistics.refit import Refits

METRICS = ("mean_years", "sd_years", "age_slope", "mae_years")
_CHUNK_VALUES = 500_000  # held at once: 4 MB, which caches hold
_DRAWS = 4  # of a group's people, and one more of those of the correction: what the seed is for


class GapResamples:
    """Resamples of groups and of the people of the corrections.

    Somebody who is in the group and was fitted on has one weight for both; everybody else of the correction is drawn
    by themselves, once for all groups of none of them. A fold of a cross-fit keeps its people.
    """

    def __init__(self, refits: Mapping[str, Refits], resamples: int, seed: int) -> None:
        self.refits, self.resamples, self.seed = refits, resamples, seed
        self.persons = next(iter(refits.values())).correction.persons_ if refits else np.empty(0, dtype=np.uint64)

    def intervals(self, part: pd.DataFrame) -> dict[str, dict[str, Interval]]:
        """Correction -> metric -> interval; `part` has one row a person with the columns of gaps."""
        scans, predicted = Scans.of(part), part["predicted_age_years"].to_numpy(dtype=np.float64)
        folds = part["corrected_by"].to_numpy()
        gaps = {name: part[f"gap_{name}_years"].to_numpy(dtype=np.float64) for name in ("none", *self.refits)}
        one = np.ones((1, len(part)))
        estimates = {name: _moments(one, scans.age_years, gap) for name, gap in gaps.items()}
        drawn: dict[str, list[np.ndarray]] = {name: [] for name in gaps}
        for weights, coefficients in self._draws(people(part), scans.persons):
            drawn["none"].append(_moments(weights, scans.age_years, gaps["none"]))
            for name, refit in self.refits.items():
                again = _gaps(refit, coefficients[name], scans, predicted, folds)
                drawn[name].append(_moments(weights, scans.age_years, again))
        kept = slice(0, 0 if len(part) < FEWEST_PERSONS else None)
        values = {name: np.concatenate(chunks)[kept] for name, chunks in drawn.items()}
        for name, refit in self.refits.items():  # a fold has knots of its own: what is resampled is the deviation
            whole = _gaps(refit, refit.coefficients(np.ones((1, len(self.persons)))), scans, predicted, folds)
            values[name] += estimates[name] - _moments(one, scans.age_years, whole)
        return {
            name: {metric: interval(found[0, k], values[name][:, k]) for k, metric in enumerate(METRICS)}
            for name, found in estimates.items()
        }

    def note(self, name: str, value: Interval) -> str:
        if name not in self.refits or not np.isfinite(value.estimate):
            return ""
        if not np.isfinite(value.low):
            return "no interval: the correction is not determined by more than a twentieth of the resamples"
        held = " (knots held, without variance weights)" if name == "conditional" else ""
        return f"interval includes the correction's own error{held}"

    def _draws(
        self, names: np.ndarray, persons: np.ndarray
    ) -> Iterator[tuple[np.ndarray, dict[str, dict[int, np.ndarray]]]]:
        """(weights [r, n] of a group, correction -> fold -> coefficients [r, p])."""
        both = np.isin(self.persons, persons)
        place = np.argsort(persons)[np.searchsorted(np.sort(persons), self.persons[both])]
        rest = np.flatnonzero(~both)
        values = len(names) + (len(self.persons) if both.any() else 0)
        start = 0
        for chunk in resample_weights(names, self.resamples, [self.seed, _DRAWS]):
            for weights in np.array_split(chunk, -(-len(chunk) * values // _CHUNK_VALUES)):
                stop = start + len(weights)
                if not both.any():
                    coefficients = {k: {-1: found[start:stop]} for k, found in self._apart.items()}
                else:
                    fitted = np.empty((len(weights), len(self.persons)))
                    fitted[:, both] = weights[:, place]
                    if len(rest):
                        others = resample_weights(rest, len(weights), [self.seed, _DRAWS + 1, start])
                        fitted[:, rest] = np.concatenate(list(others))
                    coefficients = {k: refit.coefficients(fitted) for k, refit in self.refits.items()}
                yield weights, coefficients
                start = stop

    @cached_property
    def _apart(self) -> dict[str, np.ndarray]:
        """Correction -> coefficients [R, p] of people drawn without regard to any group."""
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.refits}
        for weights in resample_weights(self.persons, self.resamples, [self.seed, _DRAWS + 1]):
            for name, refit in self.refits.items():
                found[name].append(refit.coefficients(weights)[-1])
        return {name: np.concatenate(chunks) for name, chunks in found.items()}


def _gaps(
    refit: Refits, coefficients: dict[int, np.ndarray], scans: Scans, predicted: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """[r, n]: everybody's gap by the coefficients of their fold."""
    present = np.unique(folds)
    if len(present) == 1:
        return refit.gap_years(coefficients[int(present[0])], scans, predicted)
    found = np.empty((len(coefficients[-1]), len(predicted)))
    for fold in present:
        rows = folds == fold
        found[:, rows] = refit.gap_years(coefficients[int(fold)], scans.at(rows), predicted[rows])
    return found


def _moments(weights: np.ndarray, age_years: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """METRICS [r, 4] of gaps [n] or [r, n] by weights [r, n], which sum to n."""
    n = len(age_years)
    age = age_years - age_years.mean()
    a, aa = (weights @ np.column_stack([age, age**2]) / n).T
    weighted = weights * gap
    ma = weighted @ age / n
    m = weighted.sum(axis=1) / n
    mm = np.einsum("rn,rn->r", weighted, np.broadcast_to(gap, weighted.shape)) / n
    mae = np.abs(weighted, out=weighted).sum(axis=1) / n
    variance = np.maximum(mm - m**2, 0) * n / (n - 1)
    spread = aa - a**2
    slope = np.divide(ma - m * a, spread, out=np.full_like(m, np.nan), where=spread > 1e-9)
    return np.column_stack([m, np.sqrt(variance), slope, mae])
