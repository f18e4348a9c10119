"""The probes that read age out of frozen features, and ages of people whom the probe was not fitted on.

n scans, D features. Every probe keeps to scikit-learn's manners and to one shape: `fit(X, y, groups)` with X [n, D], y
[n] years and groups [n] (the person of each scan), `predict(X)` -> years [n]; one with a predictive spread has
`predict_sd(X)` -> years [n] too. All but `ridge`, the published protocol, standardise each feature by the fitted rows
and leave out constant ones. AGE_PROBES: what `evaluate.age_probes` may name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from sklearn.neighbors import NearestNeighbors

from brainage.downstream.kernel_probes import GaussianProcessProbe, KernelRidgeProbe
from brainage.downstream.probe_inputs import checked, fitted_scaling, fold_scores, on_edge
from brainage.downstream.probes import FOLDS, RidgeProbe, fit_note, grouped_folds
from brainage.errors import ConfigError, DataError

NEIGHBOURS = (5, 10, 20, 40, 80)


class AgeProbe(Protocol):
    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray) -> AgeProbe: ...

    def predict(self, X: np.ndarray) -> np.ndarray: ...


class KnnProbe:
    """Mean age of the k nearest fitted scans, by Euclidean distance of standardised features.

    k is chosen by R2 over grouped folds, so that no neighbour is a scan of the same person. Ages beyond those of the
    fitted people cannot be predicted.
    """

    def __init__(self, neighbours: Sequence[int] = NEIGHBOURS, folds: int = FOLDS, seed: int = 0) -> None:
        self.neighbours = neighbours
        self.folds = folds
        self.seed = seed

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray) -> KnnProbe:
        X, y = checked(X, y)
        self._scaling = fitted_scaling(X)
        X = self._scaling(X)
        splits = grouped_folds(np.asarray(groups), self.seed, self.folds)
        fewest = min(len(train) for train, _ in splits)
        self.neighbours_ = [k for k in self.neighbours if k <= fewest] or [fewest]
        predicted = [(test, _by_k(X[train], y[train], X[test], self.neighbours_)) for train, test in splits]
        self.folds_ = len(splits)
        self.scores_ = fold_scores(y, predicted)
        self.k_ = self.neighbours_[int(np.argmax(self.scores_))]
        self._X, self._y = X, y
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return _by_k(self._X, self._y, self._scaling(checked(X)[0]), [self.k_])[:, 0]

    @property
    def note_(self) -> str:
        return f"k {self.k_}{on_edge(self.k_, self.neighbours_)}, standardised features"


AGE_PROBES: dict[str, type] = {
    "ridge": RidgeProbe,
    "kernel_ridge": KernelRidgeProbe,
    "gaussian_process": GaussianProcessProbe,
    "knn": KnnProbe,
}


class FittedAgeProbe(NamedTuple):
    """`note` says what was chosen (`alpha 100`)."""

    name: str
    probe: AgeProbe
    note: str

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Years [n]."""
        return self.probe.predict(X)

    def predict_sd(self, X: np.ndarray) -> np.ndarray | None:
        """Years [n]; None where the probe has no predictive spread."""
        spread = getattr(self.probe, "predict_sd", None)
        return None if spread is None else spread(X)


class OutOfFold(NamedTuple):
    years: np.ndarray  # [n], each predicted by a probe that was fitted on other people
    fold: np.ndarray  # [n]


def fit_age_probe(name: str, X: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int) -> FittedAgeProbe:
    """The probe `name` of AGE_PROBES fitted on X [n, D] and y [n] years; `seed` shuffles its folds of people.

    Raises ConfigError on an unknown name, DataError on values that are not finite, shapes that do not fit, features
    that are all constant (but for ridge) and fewer than FEWEST_FITTED people.
    """
    if name not in AGE_PROBES:
        raise ConfigError(f"evaluate.age_probes: {name!r} is no age probe; known: {', '.join(AGE_PROBES)}")
    y, groups = np.asarray(y, dtype=np.float64), np.asarray(groups)
    if y.ndim != 1 or groups.shape != y.shape:
        raise DataError(f"age probe: expected one age and one person a scan, found {y.shape} and {groups.shape}")
    probe = AGE_PROBES[name](seed=seed).fit(X, y, groups)
    return FittedAgeProbe(name, probe, fit_note(probe, "alpha") if name == "ridge" else probe.note_)


def out_of_fold_years(
    name: str, X: np.ndarray, y: np.ndarray, groups: np.ndarray, *, seed: int, folds: int = FOLDS
) -> OutOfFold:
    """An honest age for everybody: people are dealt into folds, each predicted by a probe fitted on the others.

    What the probe chooses (its penalty) it chooses within the people it is fitted on. Raises as `fit_age_probe`.
    """
    X = checked(X)[0]
    years, fold = np.full(len(X), np.nan), np.full(len(X), -1, dtype=np.int64)
    for number, (others, held_out) in enumerate(grouped_folds(np.asarray(groups), seed, folds)):
        probe = fit_age_probe(name, X[others], np.asarray(y)[others], np.asarray(groups)[others], seed)
        years[held_out], fold[held_out] = probe.predict(X[held_out]), number
    return OutOfFold(years, fold)


def _by_k(X: np.ndarray, y: np.ndarray, asked: np.ndarray, neighbours: Sequence[int]) -> np.ndarray:
    """Mean ages [n, len(neighbours)] of the nearest of X, for every k from one search."""
    if len(asked) == 0:
        return np.empty((0, len(neighbours)))
    search = NearestNeighbors(n_neighbors=max(neighbours), algorithm="brute").fit(X)
    nearest = y[search.kneighbors(asked, return_distance=False)]  # [n, k]
    means = np.cumsum(nearest, axis=1) / np.arange(1, nearest.shape[1] + 1)
    return means[:, np.array(neighbours) - 1]
