"""ROC statistics against scikit-learn, statsmodels, SciPy and all pairs one by one."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import binomtest, mannwhitneyu, norm
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from brainage.statistics import roc
from brainage.statistics.bootstrap import bootstrap


def tied_sample(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Truth and probabilities in tenths, so that many are tied within and between the classes."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < 0.4).astype(int)
    return truth, np.clip(np.round(rng.normal(0.4, 0.2, n) + 0.15 * truth, 1), 0, 1)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (roc.auc, roc_auc_score),
        (roc.average_precision, average_precision_score),
        (roc.brier, brier_score_loss),
    ],
)
@pytest.mark.parametrize("decimals", [1, 9])
def test_a_weighted_metric_is_the_one_of_the_repeated_people(ours, theirs, decimals):
    rng = np.random.default_rng(1)
    truth, scores = tied_sample(1)
    scores = np.clip(scores + (rng.normal(0, 1e-3, len(truth)) if decimals > 1 else 0), 0, 1)
    weights = rng.integers(0, 4, (30, len(truth)))
    expected = [theirs(np.repeat(truth, w), np.repeat(scores, w)) for w in weights]
    np.testing.assert_allclose(ours(truth, scores, weights.astype(float)), expected, rtol=1e-12)


def test_the_area_is_the_share_of_won_pairs_and_undefined_without_a_class():
    truth, scores = tied_sample(2)
    a, b = scores[truth == 1][:, None], scores[truth == 0][None]
    weights = np.stack([np.ones(len(truth)), truth.astype(float)])
    found = roc.auc(truth, scores, weights)
    assert found[0] == pytest.approx(((a > b) + 0.5 * (a == b)).mean())
    assert found[0] == pytest.approx(mannwhitneyu(a[:, 0], b[0]).statistic / (a.size * b.size))
    assert np.isnan(found[1])
    assert np.isnan(roc.average_precision(truth, scores, weights * (1 - truth))[0])


def placements(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = scores[truth == 1][:, None], scores[truth == 0][None]
    won = (a > b) + 0.5 * (a == b)
    return won.mean(axis=1), won.mean(axis=0)


def test_delong_by_midranks_is_delong_by_all_pairs_with_ties():
    truth, first = tied_sample(3)
    scores = np.stack([first, tied_sample(4)[1], np.random.default_rng(5).normal(size=len(truth)) + truth])
    found = roc.delong(truth, scores)
    of_case, of_control = zip(*(placements(truth, row) for row in scores), strict=True)
    expected = np.cov(np.stack(of_case)) / truth.sum() + np.cov(np.stack(of_control)) / (1 - truth).sum()
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-12)
    np.testing.assert_allclose(found.auc, [roc_auc_score(truth, row) for row in scores])


def test_a_paired_test_is_the_z_test_of_the_difference_and_knows_equal_and_perfect_scores():
    truth, first = tied_sample(6)
    second = tied_sample(7)[1] + 0.3 * truth
    found = roc.delong(truth, np.stack([first, second, 2 * first]))
    difference, p = roc.delong_test(found, 1, 0)
    ours, theirs = placements(truth, second), placements(truth, first)
    variance = sum(np.var(a - b, ddof=1) / len(a) for a, b in zip(ours, theirs, strict=True))
    z = difference.estimate / np.sqrt(variance)
    assert p == pytest.approx(2 * norm.sf(abs(z)))
    assert difference.high - difference.estimate == pytest.approx(norm.ppf(0.975) * np.sqrt(variance))
    assert roc.delong_test(found, 1, 0, widen=4.0)[1] == pytest.approx(2 * norm.sf(abs(z) / 2))
    assert roc.delong_test(found, 0, 2)[1] == 1.0
    perfect = roc.delong(truth, np.stack([truth, 1 - truth]))
    assert np.isnan(roc.delong_test(perfect, 0, 1)[1])
    assert np.isnan(roc.delong_interval(1.0, perfect.covariance[0, 0]).low)


def test_one_person_in_a_class_has_an_area_but_no_variance():
    found = roc.delong(np.array([0, 0, 0, 1]), np.array([[1.0, 2.0, 3.0, 2.5]]))
    assert found.auc[0] == pytest.approx(2 / 3)
    assert np.isnan(found.covariance).all()
    assert np.isnan(roc.delong_interval(float(found.auc[0]), float(found.covariance[0, 0])).low)


@pytest.mark.parametrize("seed", [8, 9])
def test_curves_are_those_of_scikit_learn(seed):
    truth, scores = tied_sample(seed)
    grid, one = np.linspace(0, 1, 21), np.ones((1, len(truth)))
    false_positive, sensitivity, _ = roc_curve(truth, scores, drop_intermediate=False)
    np.testing.assert_allclose(
        roc.roc_points(truth, scores, one, grid)[0], np.interp(grid, false_positive, sensitivity), atol=1e-12
    )
    precision, recall, _ = precision_recall_curve(truth, scores)
    reached = [precision[:-1][recall[:-1] >= r - 1e-12][-1] for r in grid]  # thresholds rise: the last is the highest
    np.testing.assert_allclose(roc.pr_points(truth, scores, one, grid)[0], reached, atol=1e-12)


@pytest.mark.parametrize("points", [roc.roc_points, roc.pr_points])
def test_a_band_holds_its_curve_and_leaves_out_resamples_without_a_class(points):
    truth, scores = tied_sample(10, n=30)
    band = roc.curve_band(points, truth, scores, np.arange(30), resamples=200, seed=0)
    assert (band.low <= band.y + 1e-9).mean() > 0.95
    assert (band.high >= band.y - 1e-9).mean() > 0.95
    assert (band.high - band.low).mean() > 0.05
    lonely = (np.arange(12) == 0).astype(int)
    assert np.isfinite(roc.curve_band(points, lonely, np.arange(12.0), np.arange(12), resamples=100, seed=0).low).all()


def test_calibration_is_the_logistic_regression_on_the_log_odds():
    rng = np.random.default_rng(11)
    p = np.clip(rng.beta(1, 3, 300), 1e-3, 1 - 1e-3)
    truth = (rng.random(300) < p**1.5).astype(int)
    log_odds = np.log(p / (1 - p))
    theirs = sm.Logit(truth, sm.add_constant(log_odds)).fit(disp=False)
    found = roc.calibration(truth, p)
    np.testing.assert_allclose([found.intercept.estimate, found.slope.estimate], theirs.params, rtol=1e-6)
    np.testing.assert_allclose([found.intercept[1:], found.slope[1:]], theirs.conf_int(), rtol=1e-5)


def test_calibration_is_undefined_without_spread_or_with_a_perfect_separation():
    truth = np.array([0, 0, 0, 1, 1, 1])
    assert np.isnan(roc.calibration(truth, np.full(6, 0.3)).slope.estimate)
    assert np.isnan(roc.calibration(truth, np.linspace(0.1, 0.9, 6)).slope.estimate)
    assert np.isnan(roc.calibration(np.zeros(6, int), np.linspace(0.1, 0.9, 6)).slope.estimate)


def test_reliability_bins_hold_everybody_once_and_never_part_equal_probabilities():
    truth, p = tied_sample(12, n=200)
    bins = roc.reliability(truth, p)
    assert sum(b.n for b in bins) == 200
    assert sum(b.n * b.observed for b in bins) == pytest.approx(truth.sum())
    assert sum(b.n * b.predicted for b in bins) == pytest.approx(p.sum())
    assert len(bins) < 10
    assert (np.diff([b.predicted for b in bins]) > 0).all()
    one = bins[0]
    wilson = binomtest(round(one.n * one.observed), one.n).proportion_ci(method="wilson")
    assert (one.low, one.high) == pytest.approx((wilson.low, wilson.high))
    assert len(roc.reliability(truth[:7], p[:7], fewest=5)) == 1
    assert roc.reliability(truth[:3], p[:3]) == []


def test_a_bootstrap_interval_of_the_area_is_close_to_delongs():
    rng = np.random.default_rng(13)
    truth = (rng.random(300) < 0.4).astype(int)
    scores = rng.normal(size=300) + 0.8 * truth
    statistic = {"auc": lambda weights: roc.auc(truth, scores, weights)}
    drawn = bootstrap(statistic, np.arange(300), resamples=2000, seed=0)["auc"]
    found = roc.delong(truth, scores)
    expected = roc.delong_interval(float(found.auc[0]), float(found.covariance[0, 0]))
    np.testing.assert_allclose(drawn, expected, atol=0.008)


def test_precision_without_ties_is_that_of_the_general_way():
    rng = np.random.default_rng(3)
    truth, scores = (rng.random(80) < 0.3).astype(int), rng.permutation(80) / 80
    weights = rng.multinomial(80, np.full(80, 1 / 80), size=50).astype(float)
    twice = np.r_[truth, truth], np.r_[scores, scores], np.column_stack([weights, weights]) / 2  # ties, the same value
    np.testing.assert_allclose(roc.average_precision(truth, scores, weights), roc.average_precision(*twice))
