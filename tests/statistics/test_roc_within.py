"""ROC statistics within folds against scikit-learn fold by fold, pairs one by one, and repeated drawing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from brainage.statistics import roc, roc_within
from tests.statistics.test_roc import placements, tied_sample


def folded(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, tied scores and folds of unequal size; fold 3 holds one class, fold 4 a single case."""
    truth, scores = tied_sample(seed, n)
    fold = np.random.default_rng(seed).choice(4, n, p=[0.5, 0.25, 0.15, 0.1])
    truth[fold == 3] = 0
    fold[:5], truth[:5] = 4, [1, 0, 0, 0, 0]
    return truth, scores, fold


@pytest.mark.parametrize("kind", ["auc", "average_precision"])
def test_a_weighted_metric_within_folds_is_the_weighed_mean_over_folds_of_the_repeated_people(kind):
    truth, scores, fold = folded(1)
    weights = np.random.default_rng(2).integers(0, 3, (25, len(truth)))
    expected = []
    for drawn in weights:
        t, s, f = (np.repeat(values, drawn) for values in (truth, scores, fold))
        parts = [(t[f == k], s[f == k]) for k in range(5) if len(np.unique(t[f == k])) == 2]
        theirs = roc_auc_score if kind == "auc" else average_precision_score
        share = [x.sum() * ((1 - x).sum() if kind == "auc" else 1) for x, _ in parts]
        expected.append(np.average([theirs(*part) for part in parts], weights=share))
    found = getattr(roc_within, kind)(truth, scores, weights.astype(float), fold)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_scores_of_one_fold_moved_by_a_constant_change_nothing_within_and_one_fold_is_the_pooled_area():
    truth, scores, fold = folded(3)
    one = np.ones((1, len(truth)))
    moved = scores + 10.0 * fold
    assert roc_within.auc(truth, moved, one, fold) == pytest.approx(roc_within.auc(truth, scores, one, fold))
    assert roc.auc(truth, moved, one)[0] != pytest.approx(roc.auc(truth, scores, one)[0])
    both = np.stack([scores, moved])
    within, pooled = roc_within.delong(truth, both, np.zeros(len(truth))), roc.delong(truth, both)
    np.testing.assert_allclose(within.auc, pooled.auc)
    np.testing.assert_allclose(within.covariance, pooled.covariance)


def test_delong_within_folds_weighs_the_folds_by_pairs_and_pools_the_spread_of_a_lonely_case():
    truth, first, fold = folded(4)
    second = tied_sample(5, len(truth))[1]
    found = roc_within.delong(truth, np.stack([first, second]), fold)
    parts = [fold == k for k in range(5) if len(np.unique(truth[fold == k])) == 2]
    assert min(truth[part].sum() for part in parts) == 1
    pairs = np.array([truth[p].sum() * (1 - truth[p]).sum() for p in parts])
    expected = np.zeros((2, 2))
    for of_class in (0, 1):
        beaten = [np.stack([placements(truth[p], row[p])[of_class] for row in (first, second)]) for p in parts]
        lonely = sum(np.cov(b) * (b.shape[1] - 1) for b in beaten if b.shape[1] > 1)
        lonely = lonely / sum(b.shape[1] - 1 for b in beaten)
        for share, b in zip(pairs / pairs.sum(), beaten, strict=True):
            expected += share**2 * (np.cov(b) if b.shape[1] > 1 else lonely) / b.shape[1]
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-10)
    area = [roc_within.auc(truth, row, np.ones((1, len(truth))), fold)[0] for row in (first, second)]
    np.testing.assert_allclose(found.auc, area)


def test_delong_within_folds_is_the_variance_over_repeated_drawing():
    rng, fold = np.random.default_rng(6), np.repeat([0, 1, 2], [40, 20, 40])
    truth = (np.arange(100) % np.array([2, 5, 10])[fold] == 0).astype(int)
    found = roc_within.delong(truth, rng.normal(size=(800, 100)) + truth + 3 * fold, fold)
    areas, variances = found.auc, np.diag(found.covariance)
    assert variances.mean() / areas.var(ddof=1) == pytest.approx(1.0, abs=0.17)  # 3.3 se of a variance of 800


def test_without_a_pair_or_two_people_of_a_class_there_is_no_number():
    truth, scores, fold = np.array([0, 0, 1, 1]), np.arange(4.0), np.array([0, 0, 1, 1])
    assert np.isnan(roc_within.auc(truth, scores, np.ones((1, 4)), fold)[0])
    assert np.isnan(roc_within.average_precision(truth, scores, np.ones((1, 4)), fold)[0])
    assert np.isnan(roc_within.chance_precision(truth, fold))
    assert np.isnan(roc_within.delong(truth, scores, fold).auc[0])
    assert not roc_within.paired(truth, fold).any()
    lonely = roc_within.delong(np.array([0, 0, 1]), np.arange(3.0), np.zeros(3))
    assert lonely.auc[0] == 1.0
    assert np.isnan(lonely.covariance).all()


def test_chance_precision_is_that_of_random_orders():
    truth, _, fold = folded(7)
    rng = np.random.default_rng(8)
    one = np.ones((1, len(truth)))
    drawn = [roc_within.average_precision(truth, rng.random(len(truth)), one, fold)[0] for _ in range(2000)]
    assert roc_within.chance_precision(truth, fold) == pytest.approx(
        np.mean(drawn), abs=4 * np.std(drawn) / np.sqrt(2000)
    )
    assert roc_within.chance_precision(truth, fold) > truth[fold != 3].mean() + 0.02
