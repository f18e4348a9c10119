"""Multinomial logistic regression that truly converges on raw embeddings.

n rows, D features, K classes. scikit-learn's lbfgs stops at a gradient of 1e-4, on embeddings far from the optimum
(accuracy 0.850 instead of 0.870 at C = 100 in one case), and with a tighter tolerance needs hundreds of iterations,
because the directions of an embedding differ in variance by orders of magnitude. Here the same objective is minimised
in coordinates that are rotated to the principal axes and divided by the curvature along each: several times fewer
iterations to a tolerance ten times as strict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

_GRADIENT_TOLERANCE = 1e-5  # of the mean loss, largest entry, in the scaled coordinates


class Softmax(NamedTuple):
    """Class scores are X @ coef + intercept."""

    coef: np.ndarray  # [D, K]
    intercept: np.ndarray  # [K]
    converged: bool


def fit_softmax_path(
    X: np.ndarray,
    codes: np.ndarray,
    Cs: Sequence[float],
    *,
    max_iter: int = 5000,
    tolerance: float = _GRADIENT_TOLERANCE,
) -> list[Softmax]:
    """Minimise C sum log loss + |W|^2 / 2 for each C; `codes` [n] are 0..K-1, all present, intercepts unpenalised.

    The objective of scikit-learn's LogisticRegression, two classes included (it fits those with one weight vector,
    the difference of two, whence half the penalty of two). Each C starts from the solution before it.
    """
    K = int(codes.max()) + 1
    mean = X.mean(axis=0)
    _, s, Vt = np.linalg.svd(X - mean, full_matrices=False)
    rotated = (X - mean) @ Vt.T  # [n, r]
    models, start = [], np.zeros((len(s) + 1, K))
    for C in Cs:
        penalty = (2.0 if K == 2 else 1.0) / (C * len(X))
        # Curvature of the mean loss along each axis is about variance / K at the start, plus the penalty's.
        scale = 1 / np.sqrt(np.append(s**2 / (len(X) * K) + penalty, 1 / K))
        found, converged = _minimise(rotated, codes, start / scale[:, None], scale, penalty, max_iter, tolerance)
        start = found * scale[:, None]
        coef = Vt.T @ start[:-1]
        models.append(Softmax(coef, start[-1] - mean @ coef, converged))
    return models


def _minimise(
    rotated: np.ndarray,
    codes: np.ndarray,
    start: np.ndarray,
    scale: np.ndarray,
    penalty: float,
    max_iter: int,
    tolerance: float,
) -> tuple[np.ndarray, bool]:
    """Scaled weights [r + 1, K], the last row being the intercepts."""
    n, K = len(rotated), start.shape[1]
    design = np.column_stack([rotated * scale[:-1], np.full(n, scale[-1])])
    ridge = np.append(penalty * scale[:-1] ** 2, 0.0)[:, None]
    rows = np.arange(n)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, K)
        scores = design @ weights
        scores -= scores.max(axis=1, keepdims=True)
        own = scores[rows, codes]
        np.exp(scores, out=scores)
        totals = scores.sum(axis=1, keepdims=True)
        loss = float((np.log(totals[:, 0]) - own).mean() + 0.5 * (ridge * weights**2).sum())
        scores /= totals
        scores[rows, codes] -= 1.0
        return loss, (design.T @ scores / n + ridge * weights).ravel()

    options = {"maxiter": max_iter, "maxfun": 2 * max_iter, "gtol": tolerance, "ftol": 0.0, "maxls": 50}
    result = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    gradient = np.abs(objective(result.x)[1]).max()
    return result.x.reshape(-1, K), bool(gradient <= tolerance)
