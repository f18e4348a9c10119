"""A linear mixed model of repeated visits: an intercept and a slope over years of its own for every person.

n visits, P people, K fixed terms. y = X b + u0[person] + u1[person] years + e, with (u0, u1) normal with any 2 x 2
covariance and e normal (Laird and Ware 1982); fitted by REML with statsmodels' MixedLM, on scaled columns. Its default
optimiser often stops short of the optimum, with a slope variance, and so standard errors, that are too small: L-BFGS
from a start computed per person does not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from brainage.errors import DataError
from brainage.statistics.bootstrap import Interval

FEWEST_FOR_SLOPES = 5  # people with three or more visits, below which no variance of slopes is estimated
RANDOM_SLOPE = "random intercept and slope by person, REML, t interval"
FALLBACK = "random intercept only, standard errors robust to people's own slopes (sandwich over people), t interval"
_NO_SCATTER = 1e-9  # residual sd, as a share of that of y
_STEEP = 1e-3  # gradient of the log-likelihood per visit, in scaled units, at which a fit has not converged


@dataclass(frozen=True)
class MixedFit:
    """Fixed effects in the units given; `sd_slope` and `correlation` are NaN where only intercepts are random."""

    names: tuple[str, ...]
    estimate: np.ndarray  # [K]
    covariance: np.ndarray  # [K, K]
    within: frozenset[str]  # terms that change from visit to visit of a person
    sd_intercept: float
    sd_slope: float  # per year
    correlation: float  # of a person's intercept and slope
    sd_residual: float
    people: int
    followed: int  # people with two or more visits
    scans: int
    converged: bool  # the model with random slopes converged; else `method` is FALLBACK and `reason` says why
    reason: str

    @property
    def method(self) -> str:
        """What was fitted, as a phrase of a row's note."""
        return RANDOM_SLOPE if self.converged else f"{FALLBACK}, since {self.reason}"

    def contrast(self, weights: Mapping[str, float], level: float = 0.95) -> tuple[Interval, float]:
        """Weighted sum of fixed effects with its interval, and the two-sided p of its being 0.

        Student's t with containment degrees of freedom: followed people minus terms that change within people where
        one of those has a weight, else people minus the other terms. Raises DataError on an unknown term.
        """
        for name in weights:
            if name not in self.names:
                raise DataError(f"mixed model: no term {name!r}; there are {', '.join(self.names)}")
        row = np.array([weights.get(name, 0.0) for name in self.names])
        value, error = float(row @ self.estimate), math.sqrt(row @ self.covariance @ row)
        inside = any(name in self.within for name in weights)
        count = len(self.within) if inside else len(self.names) - len(self.within)
        freedom = max((self.followed if inside else self.people) - count, 1)
        half = float(student.ppf(0.5 + level / 2, freedom)) * error
        return Interval(value, value - half, value + half), float(2 * student.sf(abs(value) / error, freedom))


def fit_mixed(y: np.ndarray, fixed: pd.DataFrame, years: np.ndarray, persons: np.ndarray) -> MixedFit:
    """Fit y [n] on the columns of `fixed` [n, K] (the intercept among them), random effects over `years` [n].

    `persons` [n] names the person behind each visit. Where the model with random slopes does not converge, or fewer
    than FEWEST_FOR_SLOPES people have three visits, only the intercept is random, standard errors are the sandwich
    over people (Liang and Zeger 1986), which holds whatever people's slopes do, and `converged` is False.
    Raises DataError on values that are not finite, terms that say the same, nobody with two visits, and data without
    scatter around the fitted lines.
    """
    values, times, terms = np.asarray(y, float), np.asarray(years, float), fixed.to_numpy(dtype=float)
    codes = np.unique(persons, return_inverse=True)[1]
    _refuse(values, terms, times, codes, list(fixed.columns))
    order = np.argsort(codes, kind="stable")
    values, times, terms, codes = values[order], times[order], terms[order], codes[order]
    size, pace = float(values.std()), float(np.sqrt(np.mean(times**2)))
    spread = np.sqrt(np.mean(terms**2, axis=0))
    data = _Data(values / size, terms / spread, times / pace, codes)
    visits = np.bincount(codes)
    reason = ""
    if (visits >= 3).sum() < FEWEST_FOR_SLOPES:
        reason = f"fewer than {FEWEST_FOR_SLOPES} people have three visits"
        found = None
    else:
        found, reason = data.fit(slopes=True)
    converged = found is not None
    if found is None:
        found, again = data.fit(slopes=False)
        if found is None:
            raise DataError(f"mixed model: not even random intercepts can be fitted ({again}); see the gaps")
    estimate, covariance = data.effects(found, robust=not converged)
    scaled = size / spread
    sds = np.sqrt(np.maximum(np.diag(found.random), 0))
    both = found.random[0, 1] / (sds[0] * sds[1]) if converged and sds.min() > 0 else np.nan
    return MixedFit(
        names=tuple(map(str, fixed.columns)),
        estimate=estimate * scaled,
        covariance=covariance * np.outer(scaled, scaled),
        within=frozenset(str(n) for n, column in zip(fixed.columns, terms.T, strict=True) if _varies(column, codes)),
        sd_intercept=float(sds[0] * size),
        sd_slope=float(sds[1] * size / pace) if converged else np.nan,
        correlation=float(both),
        sd_residual=float(math.sqrt(found.residual) * size),
        people=len(visits),
        followed=int((visits >= 2).sum()),
        scans=len(values),
        converged=converged,
        reason=reason,
    )


def _refuse(y: np.ndarray, terms: np.ndarray, years: np.ndarray, codes: np.ndarray, names: list[str]) -> None:
    if not (np.isfinite(y).all() and np.isfinite(terms).all() and np.isfinite(years).all()):
        raise DataError("mixed model: values that are not finite; leave those visits out, and count them")
    if len(y) == 0 or np.bincount(codes).max() < 2:
        raise DataError("mixed model: nobody has two visits")
    if not years.any() or not _varies(years, codes):
        raise DataError("mixed model: every visit of a person is at the same time")
    sizes = np.sqrt(np.mean(terms**2, axis=0))
    if not sizes.all() or np.linalg.matrix_rank(terms / np.where(sizes > 0, sizes, 1.0)) < terms.shape[1]:
        raise DataError(f"mixed model: the terms {', '.join(names)} are not told apart by {len(y)} visits")
    left = y - terms @ np.linalg.lstsq(terms, y, rcond=None)[0]
    if len(y) <= terms.shape[1] + 1 or left.std() <= _NO_SCATTER * max(float(np.abs(y).max()), 1e-300):
        raise DataError(f"mixed model: {len(y)} visits have no scatter around {terms.shape[1]} terms")


def _varies(column: np.ndarray, codes: np.ndarray) -> bool:
    first = column[np.unique(codes, return_index=True)[1]]
    return bool(np.any(column != first[codes]))


@dataclass(frozen=True)
class _Components:
    random: np.ndarray  # [2, 2], of intercept and slope
    residual: float


@dataclass(frozen=True)
class _Data:
    """Scaled y [n], terms [n, K] and times [n], visits of a person in a row."""

    y: np.ndarray
    terms: np.ndarray
    times: np.ndarray
    codes: np.ndarray

    def fit(self, *, slopes: bool) -> tuple[_Components | None, str]:
        """Variance components by REML, or None and why not."""
        from statsmodels.regression.mixed_linear_model import MixedLM

        design = np.column_stack([np.ones_like(self.times), self.times])[:, : 2 if slopes else 1]
        model = MixedLM(self.y, self.terms, groups=self.codes, exog_re=design)
        start = self._start()[: 2 if slopes else 1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # statsmodels' warnings are judged below, by what they warn of
            try:
                packed = np.linalg.cholesky(np.diag(start))[np.tril_indices(len(start))]
                result = model.fit(start_params=packed, reml=True, method=["lbfgs"], maxiter=200)
            except (np.linalg.LinAlgError, ValueError) as error:
                return None, f"the fit failed ({error})".replace(";", ",")
        return self._judged(result, slopes)

    def _judged(self, result: Any, slopes: bool) -> tuple[_Components | None, str]:
        random = np.zeros((2, 2))
        random[: 1 + slopes, : 1 + slopes] = np.asarray(result.cov_re)
        if not (np.isfinite(random).all() and np.isfinite(result.scale) and result.scale > 0):
            return None, "its variances are not finite"
        gradient = np.abs(result.model.score(result.params_object, profile_fe=True)).max() / len(self.y)
        if not result.converged or not gradient < _STEEP:
            return None, "REML did not converge"
        return _Components(random, float(result.scale)), ""

    def _start(self) -> np.ndarray:
        """Variances of intercepts and slopes over the residual's: a guess from each person's own line."""
        left = self.y - self.terms @ np.linalg.lstsq(self.terms, self.y, rcond=None)[0]
        count = np.bincount(self.codes)
        middle = np.bincount(self.codes, left) / count
        away = self.times - (np.bincount(self.codes, self.times) / count)[self.codes]
        spread = np.bincount(self.codes, away**2)
        slope = np.bincount(self.codes, away * left) / np.where(spread > 0, spread, 1.0)
        rest = left - middle[self.codes] - slope[self.codes] * away
        lines = np.where(spread > 0, 2, 1).sum()
        residual = max(float(rest @ rest) / max(len(left) - lines, 1), 1e-3 * float(left.var()))
        slopes = slope[spread > 0].var() - residual * np.mean(1 / spread[spread > 0])
        return np.clip(np.array([middle.var(), slopes]) / residual, 0.02, 1e3)

    def effects(self, found: _Components, *, robust: bool) -> tuple[np.ndarray, np.ndarray]:
        """Generalised least squares given the components: effects [K] and their covariance [K, K]."""
        bounds = np.flatnonzero(np.diff(self.codes, prepend=-1, append=self.codes[-1] + 1))
        blocks = [slice(low, high) for low, high in pairwise(bounds)]
        count = self.terms.shape[1]
        information, projected = np.zeros((count, count)), np.zeros(count)
        weighted = np.empty_like(self.terms)
        for rows in blocks:
            z = np.column_stack([np.ones(rows.stop - rows.start), self.times[rows]])
            spread = z @ found.random @ z.T + found.residual * np.eye(len(z))
            weighted[rows] = np.linalg.solve(spread, self.terms[rows])
            information += self.terms[rows].T @ weighted[rows]
            projected += weighted[rows].T @ self.y[rows]
        covariance = np.linalg.inv(information)
        estimate = covariance @ projected
        if robust:
            left = self.y - self.terms @ estimate
            scores = np.stack([weighted[rows].T @ left[rows] for rows in blocks])
            people = len(blocks)
            covariance = covariance @ (scores.T @ scores) @ covariance * people / max(people - count, 1)
        return estimate, covariance
