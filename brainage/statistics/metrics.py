"""Metrics as weighted functions, so that thousands of resamples are a few matrix products.

n scans, R resamples, K classes. Every function takes the truth [n], one prediction [n] and weights [R, n] (how often a
resample holds each scan; a row of ones is the sample itself) and returns [R]: the value that scikit-learn gives for the
scans repeated so often. NaN where a resample leaves the metric undefined.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def mae_years(age: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean absolute error, mean |predicted - age|.

    >>> mae_years(np.array([20.0, 40.0]), np.array([21.0, 37.0]), np.array([[1.0, 1.0], [2.0, 0.0]])).tolist()
    [2.0, 1.0]
    """
    return _means(weights, np.abs(predicted - age))[:, 0]


def rmse_years(age: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Root of the mean squared error."""
    return np.sqrt(_means(weights, (predicted - age) ** 2)[:, 0])


def bias_years(age: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of predicted - age: above 0 when people are called too old."""
    return _means(weights, predicted - age)[:, 0]


def r2(age: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficient of determination, 1 - sum (age - predicted)^2 / sum (age - mean age)^2, of the resample.

    Below 0 when predicting that mean would be better; NaN when all ages are equal.
    """
    squared_error = _means(weights, (predicted - age) ** 2)[:, 0]
    return 1.0 - _ratio(squared_error, _covariances(age, age, weights))


def pearson_r(age: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Linear correlation of predicted and chronological age; NaN when either does not vary."""
    variances = _covariances(age, age, weights) * _covariances(predicted, predicted, weights)
    return _ratio(_covariances(age, predicted, weights), np.sqrt(variances))


def age_slope(age: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Slope of predicted on chronological age: 1 when unbiased, below 1 by regression to the mean."""
    return _ratio(_covariances(age, predicted, weights), _covariances(age, age, weights))


def balanced_accuracy(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of the share of their scans that is recognised, as a fraction; chance is 1 / K.

    Classes are those of `truth`. A resample without a scan of some class averages over the others.

    >>> truth, predicted = np.array(["a", "a", "a", "b"]), np.array(["a", "a", "b", "b"])
    >>> round(float(balanced_accuracy(truth, predicted, np.ones((1, 4)))[0]), 4)
    0.8333
    """
    classes, codes = np.unique(truth, return_inverse=True)
    member = np.zeros((len(truth), len(classes)))
    member[np.arange(len(truth)), codes] = 1.0
    scans = weights @ member  # [R, K]
    recognised = weights @ (member * (truth == predicted)[:, None])
    recalls = np.divide(recognised, scans, out=np.zeros_like(scans), where=scans > 0)
    return recalls.sum(axis=1) / (scans > 0).sum(axis=1)


AGE_METRICS: dict[str, Metric] = {
    "mae_years": mae_years,
    "rmse_years": rmse_years,
    "r2": r2,
    "pearson_r": pearson_r,
    "bias_years": bias_years,
    "age_slope": age_slope,
}


def _means(weights: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """Weighted means [R, number of columns]."""
    return (weights @ np.stack(columns, axis=1)) / weights.sum(axis=1, keepdims=True)


def _covariances(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted population covariance [R]; exactly 0 when a or b has one value only in the resample."""
    a, b = a - a.mean(), b - b.mean()  # else the difference of squares below loses digits
    means = _means(weights, a, b, a * b)
    covariance = means[:, 2] - means[:, 0] * means[:, 1]
    rounding = 1e-12 * max(np.abs(a).max() * np.abs(b).max(), np.finfo(float).tiny)
    return np.where(np.abs(covariance) <= rounding, 0.0, covariance)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
