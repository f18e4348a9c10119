"""Age probes with a radial basis function: kernel ridge regression and a Gaussian process.

n scans, D features, M landmarks, A penalties. Both are exact up to MOST_EXACT scans; above, their kernel is spanned by
LANDMARKS random scans (Nystroem features; inducing points), so that time grows with n M^2 and memory with n M.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg

from brainage.downstream.probe_inputs import checked, fitted_scaling, fold_scores, on_edge
from brainage.downstream.probes import FEWEST_FITTED, FOLDS, grouped_folds
from brainage.errors import DataError
from brainage.statistics.gaussian_process import WIDTHS as GP_WIDTHS
from brainage.statistics.gaussian_process import GaussianProcess
from brainage.statistics.nystroem import choose_landmarks, kernel_map, squared_distances, typical_distance

MOST_EXACT = 1000
LANDMARKS = 500
WIDTHS = (0.5, 1.0, 2.0, 4.0, 8.0)  # of the median distance between fitted scans
ALPHAS = tuple(10.0**decade for decade in range(-6, 3))


class KernelRidgeProbe:
    """min |y - mean - f|^2 + alpha |f|^2 in the space of exp(-|x - x'|^2 / (2 width^2)), standardised features.

    Width and alpha are chosen together by R2 over grouped folds, every alpha from one eigendecomposition a width and
    fold. With `landmarks_` = n it is scikit-learn's KernelRidge on ages less their mean.
    """

    def __init__(
        self,
        widths: Sequence[float] = WIDTHS,
        alphas: Sequence[float] = ALPHAS,
        folds: int = FOLDS,
        seed: int = 0,
        most_exact: int = MOST_EXACT,
        landmarks: int = LANDMARKS,
    ) -> None:
        self.widths = widths
        self.alphas = alphas
        self.folds = folds
        self.seed = seed
        self.most_exact = most_exact
        self.landmarks = landmarks

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray) -> KernelRidgeProbe:
        X, y = checked(X, y)
        self._scaling = fitted_scaling(X)
        X = self._scaling(X)
        splits = grouped_folds(np.asarray(groups), self.seed, self.folds)
        Z = choose_landmarks(X, len(X) if len(X) <= self.most_exact else self.landmarks, self.seed)
        distances, unit = squared_distances(Z, X), typical_distance(Z)
        scores = np.empty((len(self.widths), len(self.alphas)))
        for row, width in enumerate(self.widths):
            features = kernel_map(Z, width * unit).from_distances(distances)
            scores[row] = _scores_by_fold(features, y, splits, self.alphas)
        row, column = divmod(int(np.argmax(scores)), len(self.alphas))
        self.scores_, self.folds_, self.landmarks_, self.scans_ = scores, len(splits), len(Z), len(X)
        self.relative_width_, self.alpha_ = float(self.widths[row]), float(self.alphas[column])
        self._map, self._mean = kernel_map(Z, self.relative_width_ * unit), float(y.mean())
        features = self._map.from_distances(distances)
        self._weights = _ridge_path(features @ features.T, features @ (y - self._mean), [self.alpha_])[:, 0]
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        X = self._scaling(checked(X)[0])
        return self._mean + self._weights @ self._map.features(X)

    @property
    def width_(self) -> float:
        """Of the kernel, in units of standardised features."""
        return self._map.width

    @property
    def note_(self) -> str:
        width = f"width {self.relative_width_:g} median distances{on_edge(self.relative_width_, self.widths)}"
        alpha = f"alpha {self.alpha_:g}{on_edge(self.alpha_, self.alphas)}"
        return f"{width}, {alpha}, {_extent('Nystroem features', self.landmarks_, self.scans_)}"


class GaussianProcessProbe:
    """A Gaussian process on standardised features, its width, signal and noise by marginal likelihood.

    No folds: `groups` are only counted. The likelihood takes two scans of one person for two people, which makes the
    noise too small where people have many scans; intervals of `statistics.conformal` mend that.
    """

    def __init__(self, seed: int = 0, most_exact: int = MOST_EXACT, landmarks: int = LANDMARKS) -> None:
        self.seed = seed
        self.most_exact = most_exact
        self.landmarks = landmarks

    def fit(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray) -> GaussianProcessProbe:
        X, y = checked(X, y)
        found = len(np.unique(groups))
        if found < FEWEST_FITTED:
            raise DataError(f"probe: expected at least {FEWEST_FITTED} people to fit on, found {found}")
        if np.ptp(y) == 0:
            raise DataError("age probe: all ages are equal; a Gaussian process has nothing to learn")
        self._scaling = fitted_scaling(X)
        self.process_ = GaussianProcess(self.most_exact, self.landmarks, self.seed).fit(self._scaling(X), y)
        self.scans_ = len(X)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.process_.predict(self._scaling(checked(X)[0]))

    def predict_sd(self, X: np.ndarray) -> np.ndarray:
        """Years [n]: of the age itself, the noise included."""
        return self.process_.predict_both(self._scaling(checked(X)[0]))[1]

    @property
    def note_(self) -> str:
        process = self.process_
        width = f"width {process.relative_width_:.2g} median distances{on_edge(process.relative_width_, GP_WIDTHS)}"
        noise = f"noise sd {np.sqrt(process.noise_variance_):.1f} years"
        return f"{width}, {noise}, {_extent('inducing points', process.inducing_, self.scans_)}"


def _scores_by_fold(
    features: np.ndarray, y: np.ndarray, splits: list[tuple[np.ndarray, np.ndarray]], alphas: Sequence[float]
) -> np.ndarray:
    """Mean R2 [A]; the products of a training part are those of everybody less those of the held-out part."""
    whole = features @ features.T
    predicted = []
    for train, held_out in splits:
        out, mean = features[:, held_out], y[train].mean()
        target = features @ (y - mean) - out @ (y[held_out] - mean)
        weights = _ridge_path(whole - out @ out.T, target, alphas)
        predicted.append((held_out, mean + out.T @ weights))
    return fold_scores(y, predicted)


def _ridge_path(products: np.ndarray, target: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """Weights [M, A] of ridge from F F' [M, M] and F y [M]."""
    values, axes = scipy.linalg.eigh(products, driver="evd", check_finite=False)
    shrunk = np.maximum(values, 0.0)[:, None] + np.asarray(alphas)
    return axes @ ((axes.T @ target)[:, None] / shrunk)


def _extent(what: str, landmarks: int, scans: int) -> str:
    return f"exact on {scans} scans" if landmarks == scans else f"{landmarks} {what} for {scans} scans"
