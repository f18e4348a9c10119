"""Differences between two groups, adjusted for covariates and for site, that hold with unequal spreads and few people.

n people (one value each: rows must be independent), K outcomes, S sites, c covariates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln
from scipy.stats import t as student

from brainage.errors import DataError
from brainage.statistics.bootstrap import Interval

_ROUNDING = 1e-9


class Contrast(NamedTuple):
    """First group minus second; `p` is two-sided, of no difference."""

    difference: Interval
    hedges_g: Interval
    p: float
    df: float  # Satterthwaite's, of `difference`
    sd: float  # of the residuals, which g divides by


class _Design(NamedTuple):
    """The regression of every outcome on group, covariates and site, as what the group coefficient needs."""

    basis: np.ndarray  # [n, r] orthonormal: covariates and (last) group, sites removed
    pull: np.ndarray  # [n] the coefficient is pull' y
    leverage: np.ndarray  # [n]
    sites: np.ndarray  # [n] codes
    counts: np.ndarray  # [S] people a site
    rank: int  # columns of the whole design


class Scale(NamedTuple):
    """How each person moved the log of a factor that an outcome was multiplied with, itself estimated from people."""

    own: np.ndarray  # [n] by the people of the contrast, 0 for those whom it was not estimated from
    others: float  # sum of squares over everybody else


def adjusted_contrast(
    values: np.ndarray,
    first: np.ndarray,
    covariates: np.ndarray,
    sites: np.ndarray,
    scales: Mapping[int, Scale] | None = None,
    level: float = 0.95,
) -> list[Contrast]:
    """One Contrast for each outcome: the group coefficient of least squares on group, covariates and site.

    `values` [n, K], `first` bool [n] (the group that the other is subtracted from), `covariates` [n, c], `sites` [n]
    (one intercept each). The variance is HC2 (MacKinnon and White 1985), right with groups of unequal spread; t has the
    degrees of freedom of Bell and McCaffrey (2002; Imbens and Kolesár 2016), right with a small group. Without
    covariates on one site the standard error is Welch's. Hedges' g is difference / residual sd times the exact small-
    sample factor (Hedges 1981), its variance that of Borenstein et al. (2009, chapter 4) with the HC2 one in it.
    `scales`: number of an outcome -> its Scale. The interval of the difference then holds the error of the factor, by
    the variance of both estimates' influences together (stacked estimating equations, Stefanski and Boos 2002); p and g
    do not depend on a factor. Covariates that do not vary, or that the others hold, count for nothing. Raises DataError
    where group cannot be told from site and covariates, or no degree of freedom or no residual is left.

    >>> values = np.array([[1.0], [2.0], [3.0], [5.0], [6.0], [7.0]])
    >>> first = np.array([False, False, False, True, True, True])
    >>> found = adjusted_contrast(values, first, np.empty((6, 0)), np.zeros(6))[0]
    >>> round(found.difference.estimate, 6), round(found.df, 6), round(found.hedges_g.estimate, 3)
    (4.0, 4.0, 3.192)
    """
    design = _design(np.asarray(first, dtype=np.float64), np.asarray(covariates, dtype=np.float64), sites)
    residual_df = len(first) - design.rank
    if residual_df < 2:
        raise DataError(f"{len(first)} people are too few for {design.rank} coefficients of group, covariates and site")
    y = _within(np.asarray(values, dtype=np.float64), design.sites, design.counts)  # [n, K]
    residuals = y - design.basis @ (design.basis.T @ y)
    free = 1 - design.leverage
    free = np.where(free > _ROUNDING, free, np.inf)  # somebody alone at a site: fitted exactly, knows nothing of group
    influences = residuals * (design.pull / np.sqrt(free))[:, None]
    estimates, variances = design.pull @ y, (influences**2).sum(axis=0)
    widened = variances.copy()
    for k, scale in (scales or {}).items():
        widened[k] = ((influences[:, k] + estimates[k] * scale.own) ** 2).sum() + estimates[k] ** 2 * scale.others
    df = _satterthwaite(design, free)
    sds = np.sqrt((residuals**2).sum(axis=0) / residual_df)
    if (sds <= _ROUNDING * np.maximum(np.abs(values).max(axis=0), 1)).any():
        raise DataError("group, covariates and site leave nothing of the values: they do not vary otherwise")
    return [
        _contrast(float(estimate), float(variance), float(wide), df, float(sd), residual_df, level)
        for estimate, variance, wide, sd in zip(estimates, variances, widened, sds, strict=True)
    ]


def small_sample_factor(df: float) -> float:
    """J of Hedges (1981), exact: gamma(df / 2) / (sqrt(df / 2) gamma((df - 1) / 2)).

    >>> round(small_sample_factor(10), 4), round(1 - 3 / (4 * 10 - 1), 4)
    (0.9227, 0.9231)
    """
    return float(np.exp(gammaln(df / 2) - gammaln((df - 1) / 2)) / np.sqrt(df / 2))


def _contrast(
    estimate: float, variance: float, widened: float, df: float, sd: float, residual_df: int, level: float
) -> Contrast:
    error, quantile, wide = np.sqrt(variance), float(student.ppf(0.5 + level / 2, df)), np.sqrt(widened)
    factor, d = small_sample_factor(residual_df), estimate / sd
    g, g_error = factor * d, factor * np.sqrt(variance / sd**2 + d**2 / (2 * residual_df))
    return Contrast(
        Interval(estimate, estimate - quantile * wide, estimate + quantile * wide),
        Interval(g, g - quantile * g_error, g + quantile * g_error),
        float(2 * student.sf(abs(estimate) / error, df)),
        df,
        sd,
    )


def _design(first: np.ndarray, covariates: np.ndarray, sites: np.ndarray) -> _Design:
    _, codes, counts = np.unique(sites, return_inverse=True, return_counts=True)
    group = _within(first[:, None], codes, counts)[:, 0]
    basis = _orthonormal(_within(covariates, codes, counts), covariates)
    group = group - basis @ (basis.T @ group)
    size = float(group @ group)
    if size <= _ROUNDING * len(first):
        raise DataError("group cannot be told from site and covariates: no site holds people of both groups alike")
    basis = np.column_stack([basis, group / np.sqrt(size)])
    leverage = 1 / counts[codes] + (basis**2).sum(axis=1)
    return _Design(basis, group / size, leverage, codes, counts, len(counts) + basis.shape[1])


def _orthonormal(within: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """[n, r] basis of the columns [n, c], of which none is left out by its unit alone."""
    spread = np.linalg.norm(within, axis=0)
    varies = spread > _ROUNDING * np.maximum(np.linalg.norm(covariates, axis=0), 1e-300)
    if not varies.any():
        return np.empty((len(within), 0))
    U, s, _ = np.linalg.svd(within[:, varies] / spread[varies], full_matrices=False)
    return U[:, s > 1e-7 * s[0]]


def _within(columns: np.ndarray, codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[n, m] columns minus their means at each site."""
    sums = np.stack([np.bincount(codes, column, len(counts)) for column in columns.T], axis=1) if columns.size else None
    return columns if sums is None else columns - (sums / counts[:, None])[codes]


def _satterthwaite(design: _Design, free: np.ndarray) -> float:
    """(tr B)^2 / tr B^2 with B = M diag(w) M, M = 1 - H the residual maker and w = pull^2 / (1 - leverage): the degrees
    of freedom of the HC2 variance were all spreads equal. The sites' part of H is kept as counts, never as a matrix.
    """
    w, h = design.pull**2 / free, design.leverage
    by_site = np.stack([np.bincount(design.sites, w * column, len(design.counts)) for column in design.basis.T], axis=1)
    own = np.bincount(design.sites, w, len(design.counts)) / design.counts
    small = design.basis.T @ (design.basis * w[:, None])
    cross = (own**2).sum() + 2 * (by_site**2 / design.counts[:, None]).sum() + (small**2).sum()
    return float((w * (1 - h)).sum() ** 2 / ((w**2 * (1 - 2 * h)).sum() + cross))
