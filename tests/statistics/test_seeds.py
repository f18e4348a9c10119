"""Intervals over seeds are Student's, corrections are Holm's."""

import numpy as np
import pytest
from scipy import stats

from brainage.statistics.seeds import holm, seed_interval


def test_the_interval_is_that_of_the_one_sample_t_test():
    values = np.random.default_rng(0).normal(0.4, 1, 5)
    found, expected = seed_interval(values), stats.ttest_1samp(values, 0)
    low, high = expected.confidence_interval()
    assert tuple(found.interval) == pytest.approx((values.mean(), low, high))
    assert (found.p, found.sd, found.seeds) == pytest.approx((expected.pvalue, values.std(ddof=1), 5))


@pytest.mark.slow
def test_the_interval_of_three_seeds_holds_the_truth_95_times_in_100():
    draws = np.random.default_rng(1).normal(2.0, 3.0, (20_000, 3))
    held = [low <= 2.0 <= high for (_, low, high), *_ in map(seed_interval, draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.005)


def test_one_seed_has_a_mean_and_nothing_else():
    found = seed_interval([3.0])
    assert found.interval.estimate == 3.0
    assert np.isnan([found.interval.low, found.interval.high, found.p, found.sd]).all()


def test_a_seed_without_a_number_is_left_out_and_not_counted():
    assert seed_interval([1.0, np.nan, 3.0]) == seed_interval([1.0, 3.0])
    assert seed_interval([np.nan]).seeds == 0


def test_equal_differences_leave_no_doubt():
    assert seed_interval([0.5, 0.5]).p == 0
    assert seed_interval([0.0, 0.0]).p == 1


def test_holm_is_the_definition():
    p = np.array([0.04, 0.001, 0.03, 0.5, 0.02])
    order = np.argsort(p)
    by_hand = np.empty(5)
    for place, index in enumerate(order):
        by_hand[index] = min(1, max(p[order[k]] * (5 - k) for k in range(place + 1)))
    assert holm(p) == pytest.approx(by_hand)


def test_holm_counts_only_comparisons_that_were_made():
    assert holm([0.02, np.nan]).tolist() == pytest.approx([0.02, np.nan], nan_ok=True)
    assert len(holm([])) == 0
