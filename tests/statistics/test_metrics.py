"""Weighted metrics against scikit-learn and scipy on the rows repeated as often as their weights say."""

import warnings

import numpy as np
import pytest
from scipy.stats import linregress
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, r2_score, root_mean_squared_error

from brainage.statistics.metrics import AGE_METRICS, balanced_accuracy

REFERENCE = {
    "mae_years": mean_absolute_error,
    "rmse_years": root_mean_squared_error,
    "r2": r2_score,
    "pearson_r": lambda y, p: np.corrcoef(y, p)[0, 1],
    "bias_years": lambda y, p: np.mean(p - y),
    "age_slope": lambda y, p: linregress(y, p).slope,
}


@pytest.mark.parametrize("name", list(AGE_METRICS))
def test_a_weighted_metric_is_the_metric_of_the_repeated_rows(name):
    rng = np.random.default_rng(1)
    age = rng.uniform(18, 90, 40)
    predicted = age + rng.normal(1, 5, 40)
    weights = rng.integers(0, 4, (30, 40))
    expected = [REFERENCE[name](np.repeat(age, w), np.repeat(predicted, w)) for w in weights]
    np.testing.assert_allclose(AGE_METRICS[name](age, predicted, weights.astype(float)), expected, rtol=1e-10)


def test_balanced_accuracy_is_the_one_of_the_repeated_rows_even_without_a_class():
    rng = np.random.default_rng(2)
    truth = rng.choice(list("abcde"), 30)
    predicted = np.where(rng.random(30) < 0.5, truth, rng.choice(list("abcdefg"), 30))
    weights = rng.integers(0, 2, (50, 30)) * (truth != rng.choice(list("abcde"), (50, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # predictions of classes that are absent from the truth
        expected = [balanced_accuracy_score(np.repeat(truth, w), np.repeat(predicted, w)) for w in weights]
    np.testing.assert_allclose(balanced_accuracy(truth, predicted, weights.astype(float)), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["r2", "pearson_r", "age_slope"])
def test_a_resample_of_one_age_leaves_the_metric_undefined(name):
    age, predicted = np.array([20.1, 50.3, 70.7]), np.array([25.0, 44.0, 71.0])
    weights = np.array([[0.0, 3.0, 0.0], [1.0, 1.0, 1.0]])
    values = AGE_METRICS[name](age, predicted, weights)
    assert np.isnan(values[0])
    assert np.isfinite(values[1])


def test_a_constant_prediction_has_no_correlation_but_a_slope_of_zero():
    age, weights = np.array([20.0, 50.0, 71.0]), np.ones((1, 3))
    assert np.isnan(AGE_METRICS["pearson_r"](age, np.full(3, 47.3), weights)[0])
    assert AGE_METRICS["age_slope"](age, np.full(3, 47.3), weights)[0] == 0
