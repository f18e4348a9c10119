"""Gaussian process regression by marginal likelihood, exact or with inducing points, in one form.

n scans, D features, M inducing points. y = f(x) + noise, f a zero-mean process with covariance
signal * exp(-|x - x'|^2 / (2 width^2)), noise of variance signal * ratio. With the features F [M, n] of
`statistics.nystroem`, the bound of Titsias (2009, equation 9) on the log marginal likelihood is

    log N(y | 0, signal (F'F + ratio I)) - (n - tr F'F) / (2 ratio)

and equals the marginal likelihood where the inducing points are all rows. From one eigendecomposition of F F' [M, M] a
width, the best signal is known in closed form and every ratio costs O(M), so that two nested searches on a line find
all three: over widths from a grid, since the likelihood often has several peaks, over ratios between bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.optimize import minimize_scalar

from brainage.statistics.nystroem import (
    KernelMap,
    choose_landmarks,
    kernel_map,
    squared_distances,
    typical_distance,
)

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # of the typical distance: trials before the search on a line
_LOG_RATIOS = (-14.0, 9.0)  # natural logarithm of noise variance / signal variance
_WIDTH_TOLERANCE = 0.02  # of the logarithm of the width


class _Fit(NamedTuple):
    """What is known for one width; `bound` is the log of (a bound on) the marginal likelihood."""

    bound: float
    map: KernelMap
    ratio: float
    signal: float
    axes: np.ndarray  # [M, M] eigenvectors of F F' in columns
    values: np.ndarray  # [M]
    target: np.ndarray  # [M] axes' F y


class GaussianProcess:
    """Exact up to `most_exact` rows, above with `inducing` random rows as inducing points.

    Learnt: `width_`, `relative_width_` (in median distances between scans), `signal_variance_` and `noise_variance_`
    (units of y squared), `bound_` (log marginal likelihood, a lower bound of it when sparse), `inducing_` (number of
    inducing points). The mean of y is subtracted first.
    """

    def __init__(self, most_exact: int = 1000, inducing: int = 500, seed: int = 0) -> None:
        self.most_exact = most_exact
        self.inducing = inducing
        self.seed = seed

    def fit(self, X: np.ndarray, y: np.ndarray) -> GaussianProcess:
        """X [n, D] finite, y [n]; features should have comparable scales, since there is one width."""
        self.mean_ = float(y.mean())
        most = len(X) if len(X) <= self.most_exact else self.inducing
        landmarks = choose_landmarks(X, most, self.seed)
        distances, centred = squared_distances(landmarks, X), y - self.mean_
        best: _Fit | None = None  # an eigenbasis is large: only the best is kept

        def loss(log_width: float) -> float:
            nonlocal best
            one = _fit(kernel_map(landmarks, unit * float(np.exp(log_width))), distances, centred)
            best = one if best is None or one.bound > best.bound else best
            return -one.bound

        unit = typical_distance(landmarks)
        _search(loss, np.log(WIDTHS))
        assert best is not None  # the search tries at least the grid
        self._best, self.bound_ = best, best.bound
        self.width_, self.relative_width_ = best.map.width, best.map.width / unit
        self.signal_variance_, self.noise_variance_ = self._best.signal, self._best.signal * self._best.ratio
        self.inducing_ = len(landmarks)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """[n] means in the unit of y."""
        return self.predict_both(X)[0]

    def predict_both(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations [n] of new observations, their noise included (Titsias 2009, equation 6)."""
        best = self._best
        features = best.map.features(X)
        turned = best.axes.T @ features
        shrunk = best.values + best.ratio
        mean = self.mean_ + turned.T @ (best.target / shrunk)
        left = 1.0 - (features**2).sum(axis=0) + best.ratio * (turned**2 / shrunk[:, None]).sum(axis=0)
        return mean, np.sqrt(best.signal * (np.maximum(left, 0.0) + best.ratio))


def _fit(kernel: KernelMap, distances: np.ndarray, y: np.ndarray) -> _Fit:
    """The best noise and signal of one width."""
    n = len(y)
    features = kernel.from_distances(distances)
    values, axes = scipy.linalg.eigh(features @ features.T, driver="evd", check_finite=False)
    values = np.maximum(values, 0.0)
    target = axes.T @ (features @ y)
    unexplained = max(n - float(values.sum()), 0.0)
    square = float(y @ y)

    def signal(ratio: float) -> float:
        # y' (F'F + ratio I)^-1 y / n by the matrix inversion lemma.
        fitted = float((target**2 / (values + ratio)).sum())
        return max((square - fitted) / ratio, np.finfo(float).tiny) / n

    def loss(log_ratio: float) -> float:
        ratio = float(np.exp(log_ratio))
        log_determinant = float(np.log(values + ratio).sum()) + (n - len(values)) * log_ratio
        whole = n * (np.log(2 * np.pi * signal(ratio)) + 1) + log_determinant + unexplained / ratio
        return 0.5 * whole

    found = minimize_scalar(loss, bounds=_LOG_RATIOS, method="bounded", options={"xatol": 1e-4})
    ratio = float(np.exp(found.x))
    return _Fit(-float(found.fun), kernel, ratio, signal(ratio), axes, values, target)


def _search(loss: Callable[[float], float], grid: np.ndarray) -> None:
    """Evaluate `loss` on the grid, then along the line between the neighbours of its best point."""
    best = int(np.argmin([loss(float(point)) for point in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": _WIDTH_TOLERANCE, "maxiter": 12})
