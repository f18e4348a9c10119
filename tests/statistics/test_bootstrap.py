"""Intervals over subjects: against brute force, against scipy, and by their coverage."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error

from brainage.statistics import bootstrap as module
from brainage.statistics.bootstrap import bootstrap, interval, replicates, resample_weights, seed_mean
from brainage.statistics.metrics import balanced_accuracy, mae_years


def weighted_mean(values):
    return {"mean": lambda weights: weights @ values / weights.sum(axis=1)}


def test_the_scans_of_a_person_are_drawn_together_and_as_many_people_as_there_are():
    persons = np.array(["b", "a", "b", "c", "a", "b"])
    weights = np.concatenate(list(resample_weights(persons, 200, seed=3)))
    assert weights.shape == (200, 6)
    assert (weights[:, persons == "a"] == weights[:, [1]]).all()
    assert (weights[:, persons == "b"] == weights[:, [0]]).all()
    assert (weights[:, [1, 0, 3]].sum(axis=1) == 3).all()
    assert len(np.unique(weights, axis=0)) == 10  # every multiset of 3 out of 3 people


def test_a_replicate_is_the_metric_of_the_people_it_drew():
    rng = np.random.default_rng(0)
    persons = rng.choice([f"p{i}" for i in range(12)], 30)
    age, predicted = rng.uniform(20, 80, 30), rng.uniform(20, 80, 30)
    values = replicates({"mae": lambda w: mae_years(age, predicted, w)}, persons, resamples=40, seed=5)["mae"]
    generator, names = np.random.default_rng(5), np.unique(persons)
    expected = [mean_absolute_error(age, predicted)]
    for drawn in generator.integers(0, len(names), size=(40, len(names))):
        rows = np.concatenate([np.flatnonzero(persons == names[person]) for person in drawn])
        expected.append(mean_absolute_error(age[rows], predicted[rows]))
    np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_equal_seeds_agree_to_the_last_digit_whatever_the_chunks_and_the_row_order(monkeypatch):
    rng = np.random.default_rng(0)
    persons, values = np.repeat(np.arange(25), 2), rng.normal(size=50)
    whole = bootstrap(weighted_mean(values), persons, resamples=300, seed=7)
    order = rng.permutation(50)
    shuffled = bootstrap(weighted_mean(values[order]), persons[order], resamples=300, seed=7)
    np.testing.assert_allclose(shuffled["mean"], whole["mean"], rtol=1e-12)
    assert bootstrap(weighted_mean(values), persons, resamples=300, seed=8) != whole
    weights = np.concatenate(list(resample_weights(persons, 300, 7)))
    monkeypatch.setattr(module, "_CHUNK_VALUES", 50 * 7)
    np.testing.assert_array_equal(np.concatenate(list(resample_weights(persons, 300, 7))), weights)


def test_people_in_order_and_out_of_order_get_the_same_weights():
    """In order of their names and with one scan each, weights need not be spread over scans; elsewhere they are."""
    names = np.array([f"p{i}" for i in range(30)])  # sorted as text: p0, p1, p10, ...
    orders = [np.argsort(names), np.arange(30), np.random.default_rng(0).permutation(30)]
    drawn = [np.concatenate(list(resample_weights(names[order], 40, 7)))[:, np.argsort(order)] for order in orders]
    for other in drawn[1:]:
        np.testing.assert_array_equal(other, drawn[0])
    twice = np.concatenate(list(resample_weights(np.repeat(np.sort(names), 2), 40, 7)))
    np.testing.assert_array_equal(twice[:, ::2], drawn[0][:, np.argsort(names)])
    assert drawn[0].std() > 0


def test_the_interval_is_the_one_of_scipy():
    values = np.random.default_rng(4).gamma(2, size=80)
    ours = bootstrap(weighted_mean(values), np.arange(80), resamples=20_000, seed=0)["mean"]
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.03 * width
    assert abs(ours.high - theirs.high) < 0.03 * width


def test_repeating_every_scan_of_everybody_does_not_narrow_the_interval():
    values = np.random.default_rng(4).normal(size=40)
    once = bootstrap(weighted_mean(values), np.arange(40), resamples=1000, seed=0)["mean"]
    thrice = bootstrap(weighted_mean(np.repeat(values, 3)), np.repeat(np.arange(40), 3), resamples=1000, seed=0)["mean"]
    np.testing.assert_allclose(thrice, once, rtol=1e-10)


def test_fewer_than_five_people_get_an_estimate_without_an_interval():
    found = bootstrap(weighted_mean(np.arange(8.0)), np.repeat(np.arange(4), 2), resamples=100, seed=0)["mean"]
    assert found.estimate == 3.5
    assert np.isnan([found.low, found.high]).all()


def test_mostly_undefined_resamples_give_no_interval_and_rare_ones_are_left_out():
    values = np.linspace(0, 1, 101)
    few, many = values.copy(), values.copy()
    few[3], many[:50] = np.nan, np.nan
    assert interval(0.5, few).high == pytest.approx(np.nanpercentile(few, 97.5))
    assert np.isnan(interval(0.5, many).high)
    assert np.isnan(interval(np.nan, values).low)


def test_the_seed_mean_scores_every_seed_with_the_same_weights():
    age, predicted = np.array([20.0, 40.0, 60.0]), np.array([[21.0, 40.0, 60.0], [20.0, 40.0, 66.0]])
    weights = np.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0]])
    np.testing.assert_allclose(seed_mean(mae_years, age, predicted)(weights), [(1 / 3 + 2) / 2, 0.5])


@pytest.mark.slow
@pytest.mark.parametrize("scans", [1, 3])
def test_intervals_of_the_mae_cover_the_truth_at_their_level(scans):
    """600 samples of 100 people whose scans share half of their error's variance; binomial sd of the coverage 0.9 %."""
    rng = np.random.default_rng(0)
    truth = 5.0 * np.sqrt(2 / np.pi)
    hits = []
    for sample in range(600):
        shared = rng.normal(size=(100, 1)) * np.sqrt(12.5)
        error = (shared + rng.normal(size=(100, scans)) * np.sqrt(12.5)).ravel()
        statistic = {"mae": lambda w, e=error: mae_years(np.zeros(len(e)), e, w)}
        found = bootstrap(statistic, np.repeat(np.arange(100), scans), resamples=600, seed=sample)["mae"]
        hits.append(found.low <= truth <= found.high)
    assert 0.915 <= np.mean(hits) <= 0.98


@pytest.mark.slow
def test_intervals_of_the_balanced_accuracy_cover_the_truth_at_their_level():
    rng = np.random.default_rng(1)
    truth = np.repeat(np.arange(4), [80, 60, 40, 20])
    recalls = np.array([0.9, 0.7, 0.5, 0.3])
    hits = []
    for sample in range(600):
        predicted = np.where(rng.random(200) < recalls[truth], truth, -1)
        statistic = {"bacc": lambda w, p=predicted: balanced_accuracy(truth, p, w)}
        found = bootstrap(statistic, np.arange(200), resamples=600, seed=sample)["bacc"]
        hits.append(found.low <= recalls.mean() <= found.high)
    assert 0.915 <= np.mean(hits) <= 0.98


def test_resamples_that_are_all_alike_give_no_interval():
    right = {"share": lambda weights: np.ones(len(weights))}
    found = bootstrap(right, np.arange(20), resamples=100, seed=0)["share"]
    assert found.estimate == 1.0
    assert np.isnan(found.low)
    assert np.isnan(found.high)
