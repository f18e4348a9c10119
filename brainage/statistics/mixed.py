"""A linear mixed model of repeated visits: an intercept and a slope over years of its own for every person.

n visits, P people, K fixed terms. y = X b + u0[person] + u1[person] years + e, with (u0, u1) normal with any 2 x 2
covariance and e normal (Laird and Ware 1982), fitted by REML in the profiled form of lme4 (Bates et al. 2015) on scaled
columns. statsmodels' MixedLM is the reference of the tests and not the engine: in cohorts of thousands its default
optimiser stops short of the optimum, with standard errors 15 % too small, and where people's slopes hardly differ
any of its optimisers may stop where the likelihood is not level. Sums over each person's visits make this one faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import OptimizeResult, minimize
from scipy.stats import t as student

from brainage.errors import DataError
from brainage.statistics.bootstrap import Interval
from brainage.statistics.clustered import ClusterRobust, cluster_robust

FEWEST_FOR_SLOPES = 5  # people with three or more visits, below which no variance of slopes is estimated
RANDOM_SLOPE = "random intercept and slope by person, REML, t interval"
FALLBACK = (
    "random intercept only, standard errors robust to people's own slopes (CR2 over people), t interval of "
    "Satterthwaite's degrees of freedom"
)
_NO_SCATTER = 1e-9  # residual sd, as a share of that of y
_EXACT = {"ftol": 1e-14, "gtol": 1e-4}  # a deviance of 1e4 rounds at 1e-12
_STEEP = 0.02  # of the deviance, per unit of a scaled sd, above which a fit has not converged


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
    robust: ClusterRobust | None = None  # of the fallback, in the units given

    @property
    def method(self) -> str:
        """What was fitted, as a phrase of a row's note."""
        return RANDOM_SLOPE if self.converged else f"{FALLBACK}, since {self.reason}"

    def contrast(self, weights: Mapping[str, float], level: float = 0.95) -> tuple[Interval, float]:
        """Weighted sum of fixed effects with its interval, and the two-sided p of its being 0.

        Student's t. With random slopes it has the containment degrees of freedom: followed people minus terms that
        change within people where one of those has a weight, else people minus the other terms; in the fallback those
        of the sandwich (Bell and McCaffrey 2002), few where one group is small. Raises DataError on an unknown term
        and, in the fallback, on one that a single person tells.
        """
        for name in weights:
            if name not in self.names:
                raise DataError(f"mixed model: no term {name!r}; there are {', '.join(self.names)}")
        row = np.array([weights.get(name, 0.0) for name in self.names])
        value, error = float(row @ self.estimate), math.sqrt(row @ self.covariance @ row)
        freedom = self._containment(weights) if self.robust is None else self.robust.freedom(row)
        half = float(student.ppf(0.5 + level / 2, freedom)) * error
        return Interval(value, value - half, value + half), float(2 * student.sf(abs(value) / error, freedom))

    def _containment(self, weights: Mapping[str, float]) -> int:
        inside = any(name in self.within for name in weights)
        count = len(self.within) if inside else len(self.names) - len(self.within)
        return max((self.followed if inside else self.people) - count, 1)


def fit_mixed(y: np.ndarray, fixed: pd.DataFrame, years: np.ndarray, persons: np.ndarray) -> MixedFit:
    """Fit y [n] on the columns of `fixed` [n, K] (the intercept among them), random effects over `years` [n].

    `persons` [n] names the person behind each visit. Where the model with random slopes does not converge, or fewer
    than FEWEST_FOR_SLOPES people have three visits, only the intercept is random, standard errors are the sandwich
    over people (Liang and Zeger 1986) in the form for few of them (`statistics.clustered`), which holds whatever
    people's slopes do, and `converged` is False.
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
    estimate, covariance = data.effects(found)
    scaled = size / spread
    robust = None
    if not converged:
        robust = data.sandwich(found, estimate).scaled(scaled)
    sds = np.sqrt(np.maximum(np.diag(found.random), 0))
    both = found.random[0, 1] / (sds[0] * sds[1]) if converged and sds.min() > 0 else np.nan
    return MixedFit(
        names=tuple(map(str, fixed.columns)),
        estimate=estimate * scaled,
        covariance=covariance * np.outer(scaled, scaled) if robust is None else robust.covariance,
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
        robust=robust,
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


class _Data:
    """Scaled y [n], terms [n, K] and times [n]; sums over each person's visits, from which the likelihood is made."""

    def __init__(self, y: np.ndarray, terms: np.ndarray, times: np.ndarray, codes: np.ndarray) -> None:
        self.y, self.terms, self.times, self.codes = y, terms, times, codes
        self.both = np.column_stack([terms, y])  # [n, K + 1]
        self.people = int(codes.max()) + 1
        z = np.column_stack([np.ones_like(times), times])
        self.zz = self._sums(z[:, :, None] * z[:, None, :])  # [P, 2, 2]
        self.zb = self._sums(z[:, :, None] * self.both[:, None, :])  # [P, 2, K + 1]
        self.bb = self.both.T @ self.both

    def _sums(self, values: np.ndarray) -> np.ndarray:
        total = np.zeros((self.people, *values.shape[1:]))
        np.add.at(total, self.codes, values)
        return total

    def cross(self, factor: np.ndarray) -> tuple[np.ndarray, float]:
        """(terms, y)' V^-1 (terms, y) [K + 1, K + 1] and log|V|, for V = I + Z F F' Z' of each person (Woodbury)."""
        middle = np.eye(2) + factor.T @ self.zz @ factor
        half = np.linalg.solve(np.linalg.cholesky(middle), factor.T @ self.zb).reshape(-1, self.both.shape[1])
        return self.bb - half.T @ half, float(np.linalg.slogdet(middle)[1].sum())

    def deviance(self, packed: np.ndarray) -> float:
        """Minus twice the restricted log-likelihood, residual variance profiled out (Bates et al. 2015)."""
        whole, spread = self.cross(_factor(packed))
        count = len(whole) - 1
        lower = np.linalg.cholesky(whole)
        left = 2 * float(np.log(lower[-1, -1]))  # of the residual sum of squares
        return spread + 2 * float(np.log(np.diag(lower)[:count]).sum()) + (len(self.y) - count) * left

    def fit(self, *, slopes: bool) -> tuple[_Components | None, str]:
        """Variance components by REML, or None and why not."""
        start = self._start()[: 3 if slopes else 1]
        try:
            best = minimize(self.deviance, start, method="L-BFGS-B", jac="3-point", options=_EXACT)
            if not _level(best):
                simplex = minimize(self.deviance, start, method="Nelder-Mead", options={"maxiter": 2000})
                best = minimize(self.deviance, simplex.x, method="L-BFGS-B", jac="3-point", options=_EXACT)
        except np.linalg.LinAlgError as error:
            return None, f"its likelihood cannot be computed ({error})"
        if not _level(best):
            return None, "REML did not converge"
        factor = _factor(best.x)
        whole = self.cross(factor)[0]
        lower = np.linalg.cholesky(whole)
        residual = float(lower[-1, -1] ** 2) / (len(self.y) - self.terms.shape[1])
        return _Components(residual * factor @ factor.T, residual), ""

    def _start(self) -> np.ndarray:
        """Factor of the random effects over the residual sd, packed: a guess from each person's own line."""
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
        sds = np.sqrt(np.clip(np.array([middle.var(), slopes]) / residual, 0.02, 1e3))
        return np.array([sds[0], 0.0, sds[1]])

    def effects(self, found: _Components) -> tuple[np.ndarray, np.ndarray]:
        """Generalised least squares given the components: effects [K] and their covariance [K, K]."""
        whole = self.cross(_root(found.random / found.residual))[0]
        covariance = np.linalg.inv(whole[:-1, :-1])
        return covariance @ whole[:-1, -1], covariance * found.residual

    def sandwich(self, found: _Components, estimate: np.ndarray) -> ClusterRobust:
        """Robust covariance of the effects where only intercepts are random.

        I + a 11' of a person's m visits is whitened by taking a share 1 - (1 + a m)^-1/2 of the person's mean away.
        """
        visits = np.bincount(self.codes)
        share = 1 - (1 + visits * found.random[0, 0] / found.residual) ** -0.5
        means = self._sums(self.both) * (share / visits)[:, None]
        white = self.both - means[self.codes]
        return cluster_robust(white[:, :-1], white[:, -1] - white[:, :-1] @ estimate, self.codes)


def _factor(packed: np.ndarray) -> np.ndarray:
    """Lower triangle [2, 2] of (intercept, both, slope), or of the intercept alone."""
    factor = np.zeros((2, 2))
    factor[np.tril_indices(2)[0][: len(packed)], np.tril_indices(2)[1][: len(packed)]] = packed
    return factor


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))


def _level(best: OptimizeResult) -> bool:
    """Whether the optimiser ended where the deviance is level."""
    return bool(np.isfinite(best.fun) and np.abs(best.jac).max() < _STEEP)
