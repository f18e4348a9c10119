"""Linear probes on frozen features: ridge for age, logistic regression for site, and who may be fitted and scored.

n scans, D features, A penalties, K sites. Both probes follow the OpenBHB challenge: no standardisation, penalties by
decades, five folds of whole people. Estimators keep to scikit-learn's manners: the constructor stores, `fit` checks and
learns, what is learnt ends in an underscore.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from brainage.data.splits import refuse_leakage
from brainage.data.table import SPLITS, person_keys, scan_keys
from brainage.downstream.results import EDGE, SCORED
from brainage.downstream.softmax import Softmax, fit_softmax_path
from brainage.errors import ConfigError, DataError, LeakageError
from brainage.statistics.metrics import balanced_accuracy

PENALTIES = (1e-2, 1e-1, 1.0, 1e1, 1e2)
WIDE_PENALTIES = tuple(10.0**decade for decade in range(-4, 7))
FOLDS = 5
PUBLISHED_ITERATIONS = 150
FEWEST_FITTED = 4  # people: two folds of two

_ROUNDING = 1e-6  # spread, as a share of the largest value, that float32 cannot tell from none


class _Sites(NamedTuple):
    """Sites that a model knows and its scores of features [n, D], [n, K]."""

    classes: np.ndarray
    scores: Callable[[np.ndarray], np.ndarray]

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.classes[self.scores(X).argmax(axis=1)]


def fitted_and_scored(
    table: pd.DataFrame, fit_splits: Sequence[str], scored: Sequence[str] = SCORED
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scans of `table` to fit on and those to score, which must be other people.

    Raises ConfigError on an unknown split name, DataError when a scan has no split or nobody is there to fit on, and
    LeakageError when a person is in two splits of the table or a split is both fitted and scored.
    """
    for name in (*fit_splits, *scored):
        if name not in SPLITS:
            raise ConfigError(f"evaluate.fit_splits: {name!r} is no split; known: {', '.join(SPLITS)}")
    both = [name for name in scored if name in fit_splits]
    if both:
        raise LeakageError(f"evaluate.fit_splits holds {both[0]}, which is scored: fit on other people")
    if table["split"].isna().any():
        lost = scan_keys(table)[table["split"].isna()]
        raise DataError(f"{len(lost)} scans have no split, first {lost.iloc[0]}; apply a split to the table first")
    refuse_leakage(table)
    fitted = table[table["split"].isin(list(fit_splits))]
    if fitted.empty:
        raise DataError(f"no scan in {' or '.join(fit_splits)} to fit a probe on; see evaluate.fit_splits")
    return fitted, table[table["split"].isin(list(scored))]


def grouped_folds(groups: np.ndarray, seed: int, folds: int = FOLDS) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train rows, held-out rows) of each fold; all rows of a group are held out together.

    Groups are shuffled by the seed and dealt into folds of equal numbers of groups; the order of the rows is of no
    consequence. With fewer than two groups a fold there are fewer folds, at least two; below four groups DataError.
    """
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) < FEWEST_FITTED:
        raise DataError(f"probe: expected at least {FEWEST_FITTED} people to fit on, found {len(names)}")
    folds = min(folds, len(names) // 2)
    fold_of = np.empty(len(names), dtype=np.intp)
    fold_of[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names)) % folds
    return [(np.flatnonzero(fold_of[codes] != fold), np.flatnonzero(fold_of[codes] == fold)) for fold in range(folds)]


class RidgeProbe:
    """Ridge regression with an unpenalised intercept, its penalty chosen by R2 over grouped folds.

    Minimises |y - X b - c|^2 + alpha |b|^2 (Hoerl and Kennard 1970) for every alpha from one decomposition a fold,
    which starts from those of the parts held out and not from the scans.
    `standardise` divides each feature by its sd over the fitted rows, so that alpha means the same whatever the unit of
    the features; features that are constant up to rounding are left out.
    """

    def __init__(
        self, alphas: Sequence[float] = PENALTIES, folds: int = FOLDS, seed: int = 0, *, standardise: bool = False
    ) -> None:
        self.alphas = alphas
        self.folds = folds
        self.seed = seed
        self.standardise = standardise

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray) -> RidgeProbe:
        """X [n, D], y [n], groups [n] (the person of each scan). Raises DataError on values that are not finite."""
        X, y = _checked_features(X, len(y)), np.asarray(y, dtype=np.float64)
        if not np.isfinite(y).all():
            raise DataError(f"age probe: {int((~np.isfinite(y)).sum())} of {len(y)} ages are not finite")
        scale = _spread(X) if self.standardise else np.ones(X.shape[1])
        X = X / scale if self.standardise else X  # no copy of raw features without need
        mean, centre = X.mean(axis=0), float(y.mean())
        rows = np.column_stack([np.ones(len(y)), X - mean, y - centre])
        splits = grouped_folds(np.asarray(groups), self.seed, self.folds)
        blocks = [_r_factor(rows[held_out]) for _, held_out in splits]
        scores = np.empty((len(splits), len(self.alphas)))
        for fold, (_, held_out) in enumerate(splits):
            coefs, intercepts = _ridge_path(blocks[:fold] + blocks[fold + 1 :], self.alphas)
            scores[fold] = _r2(rows[held_out, -1], rows[held_out, 1:-1] @ coefs + intercepts)
        self.folds_ = len(splits)
        self.scores_ = scores.mean(axis=0)  # [A]
        self.alpha_ = float(self.alphas[int(np.argmax(self.scores_))])
        coefs, intercepts = _ridge_path(blocks, [self.alpha_])
        self.coef_, self.intercept_ = coefs[:, 0] / scale, float(centre + intercepts[0] - mean @ coefs[:, 0])
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """[n] in the unit of `y`."""
        return _checked_features(X, len(X)) @ self.coef_ + self.intercept_


class SiteProbe:
    """Multinomial logistic regression, its C chosen by balanced accuracy over grouped folds.

    `solver="lbfgs"` runs to convergence. `solver="saga"` is the published protocol: 150 iterations of a stochastic
    solver, which on features that are not standardised often stops half-way and then calls sites less recognisable
    than they are. `converged_` tells whether every fit, folds included, reached its tolerance.
    """

    def __init__(
        self,
        solver: Literal["lbfgs", "saga"] = "lbfgs",
        max_iter: int | None = None,
        Cs: Sequence[float] = PENALTIES,
        folds: int = FOLDS,
        seed: int = 0,
    ) -> None:
        self.solver = solver
        self.max_iter = max_iter
        self.Cs = Cs
        self.folds = folds
        self.seed = seed

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray) -> SiteProbe:
        """X [n, D], y [n] site names, groups [n]. Raises DataError when there are fewer than two sites."""
        X, y = _checked_features(X, len(y)), np.asarray(y, dtype=str)
        groups = np.asarray(groups)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise DataError(f"site probe: expected two sites or more to tell apart, found {', '.join(self.classes_)}")
        # The person of such a site is never in both parts of a fold, so that it is missed there whatever C.
        self.lonely_sites_ = [str(site) for site in self.classes_ if len(np.unique(groups[y == site])) == 1]
        self.converged_ = True
        whole = [] if self.solver == "saga" else self._softmax(X, y)
        splits = grouped_folds(groups, self.seed, self.folds)
        scores = np.empty((len(splits), len(self.Cs)))
        for fold, (train, held_out) in enumerate(splits):
            truth, once = y[held_out], np.ones((1, len(held_out)))
            for column, model in enumerate(self._path(X[train], y[train], whole)):
                scores[fold, column] = balanced_accuracy(truth, model.predict(X[held_out]), once)[0]
        self.folds_ = len(splits)
        self.scores_ = scores.mean(axis=0)
        best = int(np.argmax(self.scores_))
        self.C_ = float(self.Cs[best])
        self._model = _Sites(self.classes_, whole[best].scores) if whole else self._saga(X, y, self.C_)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """[n] site names."""
        return self._model.predict(_checked_features(X, len(X)))

    def scores(self, X: np.ndarray) -> np.ndarray:
        """[n, K] in the order of `classes_`: log probabilities up to a constant of each row."""
        return self._model.scores(_checked_features(X, len(X)))

    def _path(self, X: np.ndarray, y: np.ndarray, whole: Sequence[Softmax]) -> list[_Sites]:
        """A fitted model for each C. `whole` are those of all rows, to start from: that a fold's fit has converged is
        judged by the fold's own gradient, and its minimum is unique."""
        classes = np.unique(y)
        if len(classes) == 1:  # a fold that lost every other site
            return [_Sites(classes, _no_choice)] * len(self.Cs)
        if self.solver == "saga":
            return [self._saga(X, y, C) for C in self.Cs]
        known = np.searchsorted(self.classes_, classes)
        starts = [model._replace(coef=model.coef[:, known], intercept=model.intercept[known]) for model in whole]
        return [_Sites(classes, model.scores) for model in self._softmax(X, y, starts)]

    def _softmax(self, X: np.ndarray, y: np.ndarray, starts: Sequence[Softmax] = ()) -> list[Softmax]:
        codes = np.unique(y, return_inverse=True)[1]
        models = fit_softmax_path(X, codes, self.Cs, starts=starts, max_iter=self.max_iter or 5000)
        self.converged_ &= all(model.converged for model in models)
        return models

    def _saga(self, X: np.ndarray, y: np.ndarray, C: float) -> _Sites:
        model = LogisticRegression(
            C=C, solver="saga", max_iter=self.max_iter or PUBLISHED_ITERATIONS, random_state=self.seed
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(X, y)
        self.converged_ &= not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        return _Sites(model.classes_, model.predict_log_proba)


def people(table: pd.DataFrame) -> np.ndarray:
    """[n] text: the person behind each scan, the unit of folds and resamples."""
    return person_keys(table).to_numpy(dtype=str)


def fit_note(probe: RidgeProbe | SiteProbe, chosen: str) -> str:
    """The chosen penalty (`alpha 100`), whether it lies at the edge of its grid, and whether folds were few."""
    value, grid = (probe.alpha_, probe.alphas) if isinstance(probe, RidgeProbe) else (probe.C_, probe.Cs)
    note = f"{chosen} {value:g}" + (f" {EDGE}" if value in (min(grid), max(grid)) else "")
    return note if probe.folds_ == probe.folds else f"{note}; only {probe.folds_} folds: few people"


def _no_choice(X: np.ndarray) -> np.ndarray:
    return np.zeros((len(X), 1))


def _checked_features(X: np.ndarray, n: int) -> np.ndarray:
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 2 or len(X) != n:
        raise DataError(f"probe: expected features of shape ({n}, D), found {X.shape}")
    if not np.isfinite(X).all():
        raise DataError(
            f"probe: {int((~np.isfinite(X)).any(axis=1).sum())} of {n} rows hold values that are not finite"
        )
    return X


def _spread(X: np.ndarray) -> np.ndarray:
    """[D] standard deviations; infinite, which makes the feature 0, where all but float32 rounding is constant."""
    sd = X.std(axis=0)
    return np.where(sd > _ROUNDING * np.abs(X).max(axis=0), sd, np.inf)


def _r_factor(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.qr(rows, mode="r"))


def _ridge_path(blocks: Sequence[np.ndarray], alphas: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [D, A] and intercepts [A] on the rows behind all `blocks`, the R factors of [1, X, y] by rows.

    Their stack has the R factor of all these rows. Its first row holds the means of X and y, the rest is the R factor
    of both centred: [R, r] with R = U S V' gives V S (S^2 + alpha)^-1 U' r. Never forming X'X keeps features of very
    different units (thickness in mm, volumes in mm3) accurate.
    """
    factor = _r_factor(np.concatenate(blocks))
    U, s, Vt = np.linalg.svd(factor[1:, 1:-1], full_matrices=False)
    shrunken = s[:, None] / (s[:, None] ** 2 + np.asarray(alphas))
    coefs = Vt.T @ ((U.T @ factor[1:, -1])[:, None] * shrunken)
    means = factor[0, 1:] / factor[0, 0]
    return coefs, means[-1] - means[:-1] @ coefs


def _r2(y: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """R2 of each column of `predicted` [n, A]; 0 when all ages are equal, as scikit-learn has it."""
    total = ((y - y.mean()) ** 2).sum()
    error = ((y[:, None] - predicted) ** 2).sum(axis=0)
    return 1 - error / total if total > 0 else np.zeros_like(error)
