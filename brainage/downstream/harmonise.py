"""Features without their site: ComBat and linear residualisation, fitted on some people and applied to others.

n scans, D features, K sites, C columns of covariates. Every estimator here learns from the people it is fitted on and
never from those it is applied to. Scans of one person count as scans, as in the published ComBat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig
from brainage.downstream.features import Features, join
from brainage.errors import ConfigError, DataError

COVARIATES = {"age": "age_years", "sex": "sex", "tiv": "tiv_ml"}  # names in config.nuisance -> column of the table
FEWEST_OF_SITE = 2  # fitted scans of a site, below which it has no variance
_TOLERANCE = 1e-6  # relative change of the shrunken estimates at which the iteration has converged
_MOST_ROUNDS = 1000
_ROUNDING = 1e-6  # spread, as a share of the largest value, that float32 cannot tell from none


class Covariates:
    """The named covariates as numbers: age and TIV standardised over the fitted people, sex 1 for M and 0 for F."""

    def __init__(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in COVARIATES]
        if unknown:
            raise ConfigError(f"evaluate.nuisance: {unknown[0]!r} is no covariate; known: {', '.join(COVARIATES)}")
        self.names = list(dict.fromkeys(names))

    def fit(self, table: pd.DataFrame) -> Covariates:
        """Raises DataError when the table has no such column, or when a covariate is the same for everybody in it."""
        self.centre_, self.scale_ = np.zeros(len(self.names)), np.ones(len(self.names))
        for column, name in enumerate(self.names):
            values = self._values(table, name)
            known = values[np.isfinite(values)]
            if len(np.unique(known)) < 2:
                raise DataError(
                    f"{name}: {len(known)} of {len(table)} fitted scans have a known {COVARIATES[name]}, with "
                    f"{len(np.unique(known))} different values; expected two or more: leave it out of evaluate.nuisance"
                )
            if name != "sex":
                self.centre_[column], self.scale_[column] = known.mean(), known.std()
        return self

    def transform(self, table: pd.DataFrame) -> np.ndarray:
        """float64 [n, C]; NaN where a scan's covariate is not known."""
        columns = [self._values(table, name) for name in self.names]
        values = np.column_stack(columns) if columns else np.empty((len(table), 0))
        return (values - self.centre_) / self.scale_

    def _values(self, table: pd.DataFrame, name: str) -> np.ndarray:
        column = COVARIATES[name]
        if column not in table:
            raise DataError(f"{name}: the table has no column {column!r}; leave it out of evaluate.nuisance")
        if name == "sex":
            return table[column].map({"F": 0.0, "M": 1.0}).to_numpy(dtype=np.float64, na_value=np.nan)
        return table[column].to_numpy(dtype=np.float64, na_value=np.nan)


class Combat:
    """ComBat: location and scale of each site, shrunken over features by empirical Bayes.

    z = (x - alpha - C beta) / sigma, then (z - gamma*) / sqrt(delta*) back in the unit of x, with the covariates' part
    kept (Johnson 2007, equations of section 3; Fortin 2018 for the covariates). gamma and delta of a site are shrunken
    towards that site's mean over the *features*. (combatlearn 2.3 takes the priors over the sites of one feature, with
    which two sites of 200 people differ from neuroCombat by more than a tenth of a standard deviation; hence our own.)
    Features that do not vary within sites are left as they are.
    """

    def fit(self, X: np.ndarray, sites: np.ndarray, covariates: np.ndarray | None = None) -> Combat:
        """X [n, D], sites [n] text, covariates [n, C] finite.

        Raises DataError on one site, a site of fewer than FEWEST_OF_SITE scans, or covariates that cannot be told from
        the sites.
        """
        X, codes, C = self._checked(X, sites, covariates)
        coef, counts = _fitted_effects(X, codes, C)
        K, n = len(self.sites_), len(X)
        self.alpha_, self.beta_ = counts @ coef[:K] / n, coef[K:]
        residual = X - coef[:K][codes] - C @ self.beta_
        sigma = np.sqrt((residual**2).mean(axis=0))
        self.varies_ = sigma > _ROUNDING * np.abs(X).max(axis=0)
        self.sigma_ = np.where(self.varies_, sigma, 1.0)
        z = (X - self.alpha_ - C @ self.beta_) / self.sigma_
        self.gamma_, self.delta_ = np.zeros((K, X.shape[1])), np.ones((K, X.shape[1]))
        for site in range(K):
            own = z[codes == site][:, self.varies_]
            if own.shape[1]:
                self.gamma_[site, self.varies_], self.delta_[site, self.varies_] = _shrunken(own)
        return self

    def transform(self, X: np.ndarray, sites: np.ndarray, covariates: np.ndarray | None = None) -> np.ndarray:
        """float64 [n, D]. Raises DataError on a site that was not fitted: nothing is known of its scanner."""
        X, codes, C = _known(self.sites_, X, sites, covariates)
        z = (X - self.alpha_ - C @ self.beta_) / self.sigma_
        z = (z - self.gamma_[codes]) / np.sqrt(self.delta_[codes])
        return np.where(self.varies_, z * self.sigma_ + self.alpha_ + C @ self.beta_, X)

    def _checked(
        self, X: np.ndarray, sites: np.ndarray, covariates: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.sites_ = np.unique(np.asarray(sites, dtype=str))
        return _known(self.sites_, X, sites, covariates)


class SiteResidual:
    """Each feature minus its site's own mean effect, by least squares beside the covariates, which are kept.

    Plain: neither shrunken nor scaled. The effects average to zero over the fitted scans.
    """

    def fit(self, X: np.ndarray, sites: np.ndarray, covariates: np.ndarray | None = None) -> SiteResidual:
        """As `Combat.fit`."""
        self.sites_ = np.unique(np.asarray(sites, dtype=str))
        X, codes, C = _known(self.sites_, X, sites, covariates)
        coef, counts = _fitted_effects(X, codes, C)
        own = coef[: len(self.sites_)]
        self.effects_ = own - counts @ own / len(X)
        return self

    def transform(self, X: np.ndarray, sites: np.ndarray, covariates: np.ndarray | None = None) -> np.ndarray:
        """As `Combat.transform`; the covariates are not needed."""
        X, codes, _ = _known(self.sites_, X, sites, None)
        return X - self.effects_[codes]


class CovariateResidual:
    """Each feature minus what a linear regression says of the covariates, about their mean.

    The slopes are those within sites (the regression has the sites beside the covariates), so that a difference between
    scanners is not taken for one of age where sites scanned people of different ages.
    """

    def fit(self, X: np.ndarray, sites: np.ndarray, covariates: np.ndarray) -> CovariateResidual:
        """X [n, D], sites [n] text, covariates [n, C] finite. DataError when they cannot be told from each other."""
        X, codes, C = _known(np.unique(np.asarray(sites, dtype=str)), X, sites, covariates)
        self.mean_ = C.mean(axis=0)
        K = codes.max() + 1
        self.coef_ = _least_squares(np.column_stack([np.eye(K)[codes], C - self.mean_]), X)[K:]
        return self

    def transform(self, X: np.ndarray, covariates: np.ndarray) -> np.ndarray:
        """float64 [n, D]."""
        return np.asarray(X, dtype=np.float64) - (np.asarray(covariates, dtype=np.float64) - self.mean_) @ self.coef_


HARMONISERS: dict[str, type[Combat] | type[SiteResidual]] = {
    "combat": Combat,
    "residual": SiteResidual,
}  # names in config.harmonise


def _known(
    fitted: np.ndarray, X: np.ndarray, sites: np.ndarray, covariates: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X [n, D] and covariates [n, C] in float64, and the number of each scan's site among the fitted."""
    X, names = np.asarray(X, dtype=np.float64), np.asarray(sites, dtype=str)
    C = np.empty((len(X), 0)) if covariates is None else np.asarray(covariates, dtype=np.float64)
    if len(names) != len(X) or len(C) != len(X):
        raise DataError(f"harmonisation: expected {len(X)} sites and covariates, found {len(names)} and {len(C)}")
    if not np.isfinite(X).all() or not np.isfinite(C).all():
        raise DataError("harmonisation: features or covariates hold NaN or infinity; leave those scans out")
    new = sorted(set(names) - set(fitted))
    if new:
        raise DataError(f"harmonisation: site {new[0]} was not fitted, so nothing is known of its scanner")
    return X, np.searchsorted(fitted, names), C


def _fitted_effects(X: np.ndarray, codes: np.ndarray, C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [K + C, D] of sites and covariates, and the scans [K] of each site."""
    counts = np.bincount(codes)
    if len(counts) < 2:
        raise DataError(f"harmonisation: expected two sites or more, found {len(counts)}")
    if counts.min() < FEWEST_OF_SITE:
        raise DataError(f"harmonisation: a site has {counts.min()} fitted scans, expected {FEWEST_OF_SITE} or more")
    design = np.column_stack([np.eye(len(counts))[codes], C])
    return _least_squares(design, X), counts


def _least_squares(design: np.ndarray, X: np.ndarray) -> np.ndarray:
    coef, _, rank, _ = np.linalg.lstsq(design, X, rcond=None)
    if rank < design.shape[1]:
        raise DataError(
            f"harmonisation: {design.shape[1]} columns of sites and covariates have rank {rank}: a covariate cannot be "
            "told from the sites or from another one (all women at one site?); leave it out of evaluate.nuisance"
        )
    return coef


def _shrunken(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """gamma* [D] and delta* [D] of the standardised values z [n, D] of one site.

    Normal prior on the location, inverse gamma on the scale, both with moments over the features; the two posterior
    means are iterated in turn.
    """
    n, D = z.shape
    location, scale = z.mean(axis=0), z.var(axis=0, ddof=1)
    if D < 2:  # no other feature to learn a prior from
        return location, np.maximum(scale, _ROUNDING)
    mean, tau = location.mean(), location.var(ddof=1)
    m, s = scale.mean(), max(scale.var(ddof=1), np.finfo(float).tiny ** 0.5)
    a, b = (2 * s + m**2) / s, (m * s + m**3) / s
    gamma, delta = location, np.maximum(scale, _ROUNDING)
    for _ in range(_MOST_ROUNDS):
        before = gamma, delta
        gamma = (tau * n * location + delta * mean) / (tau * n + delta)
        squares = (n - 1) * scale + n * (location - gamma) ** 2
        delta = (0.5 * squares + b) / (n / 2 + a - 1)
        change = max(np.abs(gamma - before[0]).max(), np.abs(delta / before[1] - 1).max())
        if change < _TOLERANCE:
            return gamma, delta
    raise DataError(f"harmonisation: ComBat's estimates did not settle in {_MOST_ROUNDS} rounds (n {n}, {D} features)")


class Harmonised(NamedTuple):
    """Rows of the table beside their features. Fitted scans are all harmonised; scored ones where `changed` says so."""

    fitted: pd.DataFrame
    X: np.ndarray  # float64 [fitted, D]
    scored: pd.DataFrame
    X_scored: np.ndarray  # float64 [scored, D]
    changed: np.ndarray  # bool [scored]; others are of a site that was not fitted and stay as they are
    note: str


def harmonise(
    features: Features,
    table: pd.DataFrame,
    how: str,
    *,
    config: EvaluateConfig,
    scored: pd.DataFrame,
    ages: pd.Series | None = None,
) -> Harmonised:
    """Fit `how` (a name in HARMONISERS) on `config.fit_splits` and apply it to `scored`, keeping `config.nuisance`.

    Left out and counted in the note: fitted scans without a site or of a site of fewer than FEWEST_OF_SITE, and scans
    of which a covariate is not known. `how` is estimated from true ages. Where an age is going to be read from the
    result, `ages` (years by the table's index, fitted and scored) take their place when it is applied: the scale of a
    site acts on what the covariates leave, so that a true age would be told to the features. Raises DataError where
    nothing can be fitted.
    """
    everybody = table[table["split"].isin(config.fit_splits)]
    covariates = Covariates(config.nuisance).fit(everybody)
    known = np.isfinite(covariates.transform(everybody)).all(axis=1)
    fitted = everybody[known & everybody["site"].notna().to_numpy()]
    small = fitted["site"].map(fitted["site"].value_counts()) < FEWEST_OF_SITE
    sites_lost = fitted.loc[small, "site"].nunique()
    fitted = fitted[~small.to_numpy(dtype=bool)]
    if fitted.empty:
        raise DataError("harmonisation: no fitted scan has a site and the covariates of evaluate.nuisance")
    model = HARMONISERS[how]()
    X, sites, C = join(features, fitted), _site_names(fitted), covariates.transform(fitted)
    model.fit(X, sites, C)
    X = model.transform(X, sites, covariates.transform(_aged(fitted, ages)))
    C = covariates.transform(_aged(scored, ages))
    complete = np.isfinite(C).all(axis=1)
    kept, C = scored[complete], C[complete]
    changed = kept["site"].isin(model.sites_).to_numpy(dtype=bool)
    X_scored = join(features, kept).astype(np.float64) if len(kept) else np.empty((0, X.shape[1]))
    if changed.any():
        X_scored[changed] = model.transform(X_scored[changed], _site_names(kept[changed]), C[changed])
    lost = [len(everybody) - len(fitted), len(scored) - len(kept)]
    keeping = ", ".join(covariates.names) or "no covariate"
    notes = [f"{how} fitted on {len(fitted)} scans of {len(model.sites_)} sites, keeping {keeping}"]
    if any(lost):
        notes.append(f"left out: {lost[0]} fitted and {lost[1]} scored scans, {sites_lost} sites of one fitted scan")
    return Harmonised(fitted, X, kept, X_scored, changed, "; ".join(notes))


def _aged(rows: pd.DataFrame, ages: pd.Series | None) -> pd.DataFrame:
    return rows if ages is None else rows.assign(age_years=ages.loc[rows.index])


def _site_names(rows: pd.DataFrame) -> np.ndarray:
    return rows["site"].to_numpy(dtype=str)
