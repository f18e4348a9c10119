"""Radial basis functions by landmarks: every kernel method on n scans as a linear one on at most M features.

n scans, D features, M landmarks. With Z the landmarks and L L' = K(Z, Z), the features F = L^-1 K(Z, X) [M, n] have
F'F = K(X, Z) K(Z, Z)^-1 K(Z, X) (Williams and Seeger 2001), which is K(X, X) itself when the landmarks are all of X.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg

_JITTERS = (1e-9, 1e-7, 1e-5)  # added to the diagonal of K(Z, Z), of ones, until it has a Cholesky factor


class KernelMap(NamedTuple):
    """exp(-|x - z|^2 / (2 width^2)) as features."""

    landmarks: np.ndarray  # [M, D]
    width: float
    factor: np.ndarray  # [M, M] lower Cholesky factor of K(Z, Z)

    def features(self, X: np.ndarray) -> np.ndarray:
        """F [M, n]."""
        return self.from_distances(squared_distances(self.landmarks, X))

    def from_distances(self, distances: np.ndarray) -> np.ndarray:
        """F [M, n] from squared distances [M, n], which every width shares."""
        kernel = np.exp(distances * (-0.5 / self.width**2))
        return scipy.linalg.solve_triangular(self.factor, kernel, lower=True, overwrite_b=True, check_finite=False)


def kernel_map(landmarks: np.ndarray, width: float) -> KernelMap:
    kernel = np.exp(squared_distances(landmarks, landmarks) * (-0.5 / width**2))
    for jitter in _JITTERS[:-1]:
        try:
            return KernelMap(landmarks, width, _factor(kernel, jitter))
        except scipy.linalg.LinAlgError:  # a wide kernel, or two scans with one vector
            continue
    return KernelMap(landmarks, width, _factor(kernel, _JITTERS[-1]))


def squared_distances(Z: np.ndarray, X: np.ndarray) -> np.ndarray:
    """|z - x|^2 [M, n], never below 0."""
    distances = Z @ (-2.0 * X.T)
    distances += (X**2).sum(axis=1)
    distances += (Z**2).sum(axis=1)[:, None]
    return np.maximum(distances, 0.0, out=distances)


def choose_landmarks(X: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Rows of X [at most `most`, D]: all of them in their order, or a random sample without replacement."""
    if len(X) <= most:
        return X
    return X[np.sort(np.random.default_rng(seed).choice(len(X), most, replace=False))]


def typical_distance(landmarks: np.ndarray) -> float:
    """Median distance between two landmarks, of the first thousand; 1 where all are equal."""
    some = landmarks[:1000]
    distances = squared_distances(some, some)[np.triu_indices(len(some), k=1)]
    median = float(np.sqrt(np.median(distances))) if len(distances) else 0.0
    return median if median > 0 else 1.0


def _factor(kernel: np.ndarray, jitter: float) -> np.ndarray:
    return scipy.linalg.cholesky(kernel + jitter * np.eye(len(kernel)), lower=True, check_finite=False)
