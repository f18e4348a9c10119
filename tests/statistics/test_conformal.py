"""Conformal quantiles by brute force, their coverage by simulation, and the people they must not be shared with."""

import numpy as np
import pytest
from scipy.stats import binom

from brainage.errors import DataError, LeakageError
from brainage.statistics.conformal import calibrate, conformal_quantile, fewest_for, one_scan_a_person, refuse_reuse


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("n", [1, 4, 9, 19, 29, 199])
def test_the_quantile_is_the_smallest_score_that_holds_the_asked_share_of_n_plus_1(n, coverage):
    scores = np.random.default_rng(n).exponential(size=n)
    enough = [q for q in sorted(scores) if (scores <= q).sum() / (n + 1) >= coverage - 1e-12]
    assert conformal_quantile(scores, coverage) == (enough[0] if enough else np.inf)
    assert np.isfinite(conformal_quantile(scores, coverage)) == (n >= fewest_for(coverage))


def test_intervals_hold_everybody_within_the_radius_and_scale_with_the_predicted_sd():
    truth, predicted, persons = np.arange(9.0), np.arange(9.0) + np.array([1, -2, 3, -4, 5, -6, 7, -8, 9]), np.arange(9)
    plain = calibrate(truth, predicted, persons, coverage=0.8, seed=0)
    assert plain == (8.0, False, 9)
    low, high = plain.interval(np.array([50.0, 60.0]))
    assert (low.tolist(), high.tolist()) == ([42.0, 52.0], [58.0, 68.0])
    sd = np.full(9, 2.0)
    scaled = calibrate(truth, predicted, persons, coverage=0.8, seed=0, sd=sd)
    low, high = scaled.interval(np.array([50.0, 60.0]), np.array([1.0, 3.0]))
    assert (low.tolist(), high.tolist()) == ([46.0, 48.0], [54.0, 72.0])
    with pytest.raises(DataError, match="goes with scores over a predicted sd"):
        scaled.interval(np.array([50.0]))
    with pytest.raises(DataError, match="1 of 9 scores are not finite"):
        calibrate(np.where(truth == 3, np.nan, truth), predicted, persons, coverage=0.8, seed=0)


def test_one_scan_stands_for_a_person_drawn_anew_with_every_seed():
    persons = np.array(["b", "a", "b", "b", "c", "a"])
    drawn = {tuple(one_scan_a_person(persons, seed)) for seed in range(60)}
    assert {tuple(persons[list(rows)]) for rows in drawn} == {("a", "b", "c")}
    assert drawn == {(a, b, 4) for a in (1, 5) for b in (0, 2, 3)}
    assert calibrate(np.zeros(6), np.ones(6), persons, coverage=0.5, seed=0).people == 3


def test_people_who_were_fitted_on_or_are_scored_do_not_calibrate():
    refuse_reuse(["a", "b"], ["c"], ["d"])
    with pytest.raises(LeakageError, match="1 people of the calibration are fitted on too, first b"):
        refuse_reuse(["a", "b"], ["b", "c"], ["d"])
    with pytest.raises(LeakageError, match="2 people of the calibration are scored too, first a"):
        refuse_reuse(["a", "b"], ["c"], ["b", "a"])


@pytest.mark.parametrize("scaled", [False, True])
def test_marginal_coverage_lies_within_its_binomial_bounds_whatever_the_errors(scaled):
    """One new person a data set, so that successes are independent: P = ceil(0.9 x 31) / 31 = 28 / 31."""
    sets, n = 4000, 30
    rng = np.random.default_rng(20261122)
    held = 0
    for _ in range(sets):
        spread = rng.uniform(1, 6, n + 1)
        truth, predicted = rng.uniform(18, 85, n + 1), np.empty(n + 1)
        predicted[:] = truth + 2 + spread * rng.standard_t(3, n + 1)  # biased, heavy tails, unequal
        sd = spread * 1.7 if scaled else None
        parts = (slice(None, n), slice(n, None))
        known, new = ((truth[p], predicted[p], None if sd is None else sd[p]) for p in parts)
        found = calibrate(known[0], known[1], np.arange(n), coverage=0.9, seed=0, sd=known[2])
        low, high = found.interval(new[1], new[2])
        held += int(low[0] <= new[0][0] <= high[0])
    low, high = binom.interval(0.999, sets, 28 / 31)
    assert low <= held <= high
