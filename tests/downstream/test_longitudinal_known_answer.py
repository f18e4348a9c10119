"""Planted slopes and hazards are covered at the rate the intervals promise; nothing is found where nothing is planted.

Bounds: 99.9 % binomial, of 1,000 seeds 926 to 971 (and 29 to 74 false positives), of 100 seeds 87 or more.
"""

import numpy as np
import pandas as pd
import pytest

from brainage.config import EvaluateConfig
from brainage.downstream.longitudinal import evaluate_longitudinal
from brainage.downstream.survival import evaluate_survival
from brainage.statistics.mixed import fit_mixed
from brainage.statistics.survival import fit_cox, logrank_p
from tests.downstream.followed_people import found, make_gaps, make_readout

pytestmark = pytest.mark.slow


def followed(difference, seed, people=48, visits=4, leaves=True):
    """The slope of one third of the people is steeper by `difference`; with `leaves` people go, for good and three
    times of four, after a visit with a gap above 2 years: drop-out that depends on what was seen.
    """
    rng = np.random.default_rng([7, seed])
    person = np.repeat(np.arange(people), visits)
    years = np.tile(np.arange(float(visits)), people) + rng.uniform(-0.2, 0.2, people * visits)
    years[::visits] = 0.0
    ill = (person % 3 == 0).astype(float)
    level, slope = rng.normal(0, 2, people)[person] + 0.5 * ill, rng.normal(0.1, 0.3, people)[person]
    gap = level + (slope + difference * ill) * years + rng.normal(0, 1, people * visits)
    goes = ((gap > 2) & (rng.random(people * visits) < 0.75)).reshape(people, visits) & leaves
    there = ~np.column_stack([np.zeros(people, bool), np.logical_or.accumulate(goes, axis=1)[:, :-1]]).ravel()
    terms = pd.DataFrame({"intercept": 1.0, "years": years, "ill": ill, "years x ill": years * ill})
    return gap[there], terms[there], years[there], person[there]


def hits(planted, seeds, **keys):
    covered, significant, converged = 0, 0, 0
    for seed in range(seeds):
        fit = fit_mixed(*followed(planted, seed, **keys))
        value, p = fit.contrast({"years x ill": 1.0})
        covered += value.low <= planted <= value.high
        significant += p < 0.05
        converged += fit.converged
    return covered, significant, converged


def test_intervals_cover_a_planted_slope_difference_although_people_leave_by_their_gap():
    covered, significant, converged = hits(0.4, 1000)
    assert 926 <= covered <= 971
    assert significant > 400  # half of them expected: the planted difference is two standard errors
    assert converged == 1000


def test_without_a_planted_difference_one_test_in_twenty_is_significant():
    _, significant, _ = hits(0.0, 1000)
    assert 29 <= significant <= 74


def test_with_two_visits_a_person_the_robust_intervals_still_cover():
    covered, _, converged = hits(0.4, 1000, visits=2, leaves=False)
    assert 926 <= covered <= 971
    assert converged == 0


def two_visits(few, difference, seed, slope_sd=0.6, many=60):
    """`few` people, whose slope is steeper by `difference`, and `many` others, all seen twice."""
    rng = np.random.default_rng([9, few, seed])
    people = few + many
    person, years = np.repeat(np.arange(people), 2), np.tile([0.0, 1.0], people)
    ill = (person < few).astype(float)
    slope = rng.normal(0, 1, people)[person] * np.where(ill, slope_sd, 0.6) + difference * ill
    gap = rng.normal(0, 4, people)[person] + slope * years + rng.normal(0, 1, 2 * people)
    terms = pd.DataFrame({"intercept": 1.0, "years": years, "ill": ill, "years x ill": years * ill})
    return gap, terms, years, person


@pytest.mark.parametrize("few", [5, 8, 20])
def test_a_small_group_seen_twice_is_found_different_one_time_in_twenty_where_it_is_not(few):
    tests = (fit_mixed(*two_visits(few, 0.0, seed)).contrast({"years x ill": 1.0}) for seed in range(1000))
    assert 29 <= sum(p < 0.05 for _, p in tests) <= 74


def test_a_small_group_seen_twice_of_more_various_slopes_has_honest_intervals():
    fits = (fit_mixed(*two_visits(8, 1.0, seed, slope_sd=2.0)) for seed in range(1000))
    values = [fit.contrast({"years x ill": 1.0})[0] for fit in fits]
    assert 926 <= sum(value.low <= 1.0 <= value.high for value in values) <= 971


def test_the_rows_of_a_cohort_cover_what_was_planted_in_it():
    covered = {"AD-CN": 0, "raw CN": 0, "converter-stable": 0}
    for seed in range(100):
        gaps = make_gaps(60, 4, seed=1000 + seed, conversion=0.25)
        result = evaluate_longitudinal(make_readout(gaps), gaps, config=EvaluateConfig(bootstrap=5), seed=0).results
        metric = "slope_difference_years_per_year"
        row = found(result, metric, contrast="AD-CN", correction="beheshti")
        covered["AD-CN"] += row["low"] <= 0.5 <= row["high"]
        row = found(result, "slope_years_per_year", group="CN", correction="none")
        covered["raw CN"] += row["low"] <= -0.1 <= row["high"]
        row = found(result, metric, group="MCI", contrast="converter-stable", correction="beheshti")
        covered["converter-stable"] += not (row["low"] > 0 or row["high"] < 0)  # too few converters: no false claim
    assert min(covered.values()) >= 87, covered


def conversions(effect, seed, people=90):
    rng = np.random.default_rng([8, seed])
    terms = pd.DataFrame({"gap": rng.normal(0, 3, people), "age": rng.uniform(60, 85, people)})
    until = rng.exponential(1 / (0.15 * np.exp(effect * terms["gap"] + 0.03 * (terms["age"] - 72))))
    ends = rng.uniform(1, 8, people)
    return np.minimum(until, ends), np.asarray(until <= ends), terms


def test_intervals_cover_a_planted_hazard_ratio():
    covered = 0
    for seed in range(1000):
        ratio, _ = fit_cox(*conversions(0.15, seed)).hazard_ratio("gap")
        covered += ratio.low <= np.exp(0.15) <= ratio.high
    assert 926 <= covered <= 971


def test_without_a_planted_hazard_one_test_in_twenty_is_significant():
    cox = logrank = drift = 0
    for seed in range(1000):
        time, event, terms = conversions(0.0, seed)
        fit = fit_cox(time, event, terms)
        cox += fit.hazard_ratio("gap")[1] < 0.05
        drift += fit.drift_p[0] < 0.05
        logrank += logrank_p(time, event, np.searchsorted([-1.3, 1.3], terms["gap"])) < 0.05
    assert 29 <= cox <= 74
    assert 29 <= logrank <= 74
    assert 29 <= drift <= 74


def test_conversions_seen_at_yearly_visits_give_the_planted_ratio():
    covered = 0
    for seed in range(100):
        gaps = make_gaps(160, 5, {"MCI": 0.0}, slope_sd=0.0, seed=2000 + seed, conversion=0.12, hazard_gap=0.2)
        result = evaluate_survival(make_readout(gaps), gaps, config=EvaluateConfig(bootstrap=5), seed=0).results
        row = found(result, "hazard_ratio", group="MCI", term="gap", correction="beheshti")
        covered += row["low"] <= np.exp(0.2) <= row["high"]
    assert covered >= 87
