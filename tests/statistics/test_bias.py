"""Bias corrections: their fits against scikit-learn and statsmodels, and nobody is corrected by what they taught."""

import copy

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from sklearn.linear_model import LinearRegression

from brainage.errors import DataError, LeakageError
from brainage.statistics.bias import CORRECTIONS, Beheshti, Cole, Conditional, Scans
from brainage.statistics.cross_fit import cross_fit


def healthy_people(n=200, seed=0, first=0, low=50.0, high=90.0):
    """Scans of n people and their predicted ages: slope 0.7, more spread and a bend among the old."""
    rng = np.random.default_rng(seed)
    age, male = rng.uniform(low, high, n), rng.integers(0, 2, n).astype(float)
    scans = Scans(age, male, np.arange(first, first + n, dtype=np.uint64))
    return scans, 20 + 0.7 * age + 0.004 * (age - 70) ** 2 + rng.normal(0, np.exp(0.5 + 0.02 * (age - 50)))


def test_beheshti_is_the_regression_of_the_gap_and_cole_the_inverted_one_of_the_prediction():
    scans, predicted = healthy_people()
    new, raw = healthy_people(seed=1, first=1000)
    line = LinearRegression().fit(scans.age_years[:, None], predicted - scans.age_years)
    expected = raw - new.age_years - line.predict(new.age_years[:, None])
    np.testing.assert_allclose(Beheshti().fit(scans, predicted).transform(new, raw), expected)
    other = LinearRegression().fit(scans.age_years[:, None], predicted)
    expected = (raw - other.intercept_) / other.coef_[0] - new.age_years
    np.testing.assert_allclose(Cole().fit(scans, predicted).transform(new, raw), expected)


def test_somebody_scanned_ten_times_counts_once():
    scans, predicted = healthy_people(40)
    often = np.r_[np.arange(40), np.full(9, 7)]
    new, raw = healthy_people(seed=1, first=1000)
    for kind in (Beheshti, Cole):
        once, more = kind().fit(scans, predicted), kind().fit(scans.at(often), predicted[often])
        np.testing.assert_allclose(more.transform(new, raw), once.transform(new, raw))


def test_the_conditional_mean_and_spread_are_those_that_statsmodels_fits_given_the_other():
    scans, predicted = healthy_people(300)
    fitted = Conditional().fit(scans, predicted)
    gap, mean, spread = predicted - scans.age_years, fitted.design(scans), fitted._spread(scans)
    reference = sm.WLS(gap, mean, weights=1 / fitted.sd_years(scans) ** 2).fit()
    np.testing.assert_allclose(fitted.coef_, reference.params, rtol=1e-4)
    rooted = mean / fitted.sd_years(scans)[:, None]
    leverage = np.diag(rooted @ np.linalg.pinv(rooted))
    squares = (gap - mean @ fitted.coef_) ** 2 / (1 - leverage)
    gamma = sm.GLM(squares, spread, family=sm.families.Gamma(sm.families.links.Log())).fit()
    np.testing.assert_allclose(fitted.spread_coef_, gamma.params, atol=1e-4)


def test_z_scores_of_new_healthy_people_are_standard_normal_among_the_young_and_the_old():
    fitted = Conditional().fit(*healthy_people(3000))
    new, raw = healthy_people(3000, seed=1, first=10_000)
    z = fitted.z(new, raw)
    for here in (new.age_years < 60, new.age_years > 80):
        assert abs(z[here].mean()) < 0.12
        assert z[here].std() == pytest.approx(1, abs=0.06)
    raw_gap = raw - new.age_years
    assert raw_gap[new.age_years > 80].std() > 1.2 * raw_gap[new.age_years < 60].std()  # as planted: there is a trend


def test_of_few_people_the_conditional_mean_is_a_straight_line_and_says_so():
    scans, predicted = healthy_people(25)
    fitted = Conditional().fit(scans, predicted)
    assert "straight line (few people)" in fitted.describe()
    grid = Scans(np.array([50.0, 60.0, 70.0]), np.zeros(3), np.arange(900, 903, dtype=np.uint64))
    assert np.diff(fitted.transform(grid, grid.age_years), n=2) == pytest.approx(0, abs=1e-9)


def test_beyond_the_fitted_ages_the_mean_goes_on_straight_and_the_spread_stays():
    fitted = Conditional().fit(*healthy_people(300))
    far = Scans(np.array([95.0, 100.0, 105.0]), np.zeros(3), np.arange(900, 903, dtype=np.uint64))
    assert np.diff(fitted.transform(far, far.age_years), n=2) == pytest.approx(0, abs=1e-9)
    assert np.ptp(fitted.sd_years(far)) == pytest.approx(0, abs=1e-12)
    assert fitted.outside(np.array([95.0, 70.0, 20.0])).tolist() == [True, False, True]


@pytest.mark.parametrize("kind", CORRECTIONS.values())
def test_whoever_was_fitted_on_is_not_corrected_not_even_another_scan(kind):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({
        "cohort": "c", "participant_id": [f"p{i}" for i in range(30)], "age_years": rng.uniform(50, 90, 30), "sex": "F",
    })  # fmt: skip
    predicted = table["age_years"].to_numpy() + rng.normal(0, 3, 30)
    fitted = kind().fit(table[:20], predicted[:20])
    assert np.isfinite(fitted.transform(table[20:], predicted[20:])).all()
    later = table[19:].assign(age_years=table["age_years"][19:] + 2)
    with pytest.raises(LeakageError, match="fitted on 1 people who are then scored"):
        fitted.transform(later, predicted[19:])
    with pytest.raises(LeakageError):
        Conditional().fit(table[:20], predicted[:20]).z(later, predicted[19:])


def test_too_few_people_one_age_and_values_that_are_not_finite_are_refused():
    scans, predicted = healthy_people(20)
    for kind in CORRECTIONS.values():
        with pytest.raises(DataError, match="expected 10 or more healthy people to fit on, found 9"):
            kind().fit(scans.at(np.arange(9)), predicted[:9])
        with pytest.raises(DataError, match="all healthy people have one age"):
            kind().fit(scans._replace(age_years=np.full(20, 60.0)), predicted)
        with pytest.raises(DataError, match="not finite"):
            kind().fit(scans, np.where(np.arange(20) == 3, np.nan, predicted))


def test_a_slope_near_zero_is_not_inverted():
    scans, predicted = healthy_people(50)
    noise = np.random.default_rng(0).normal(70, 5, 50)
    for flat in (np.full(50, 70.0), noise, 70 + 0.05 * scans.age_years, 150 - predicted):
        with pytest.raises(DataError, match="it divides by that"):
            Cole().fit(scans, flat)


def test_a_planted_difference_between_the_sexes_is_removed_on_request():
    scans, predicted = healthy_people(400)
    new, raw = healthy_people(400, seed=1, first=1000)
    predicted, raw = predicted + 4 * scans.is_male, raw + 4 * new.is_male
    for kind in (Beheshti, Conditional):
        with_sex, without = (kind(sex=sex).fit(scans, predicted).transform(new, raw) for sex in (True, False))
        difference = [gap[new.is_male == 1].mean() - gap[new.is_male == 0].mean() for gap in (with_sex, without)]
        assert difference == pytest.approx([0, 4], abs=0.7)


def test_of_one_sex_alone_the_term_is_left_out_in_words_and_an_unknown_sex_gets_the_mean():
    scans, predicted = healthy_people(100)
    women = Beheshti(sex=True).fit(scans._replace(is_male=np.zeros(100)), predicted)
    assert "sex left out" in women.describe()
    assert len(women.coef_) == 2
    both = Beheshti(sex=True).fit(scans, predicted)
    one = Scans(np.full(3, 60.0), np.array([0.0, np.nan, 1.0]), np.arange(900, 903, dtype=np.uint64))
    female, unknown, male = both.transform(one, np.full(3, 60.0))
    share = scans.is_male.mean()
    assert unknown == pytest.approx((1 - share) * female + share * male)


def mixed():
    """80 healthy people of two scans each, 40 patients; everybody scored."""
    scans, predicted = healthy_people(120)
    twice = np.r_[np.arange(80), np.arange(120)]
    return scans.at(twice), predicted[twice] + np.random.default_rng(1).normal(0, 1, 200), scans.persons[twice] < 80


@pytest.mark.parametrize("kind", CORRECTIONS.values())
def test_cross_fitting_corrects_everybody_by_a_fit_on_others(kind):
    scans, predicted, healthy = mixed()
    found = cross_fit(kind(), scans, predicted, healthy, np.ones(200, dtype=bool), seed=3)
    assert (found.fold[~healthy] == -1).all()
    assert sorted(set(found.fold[healthy])) == [0, 1, 2, 3, 4]
    assert (found.fold[:80] == found.fold[80:160]).all()  # both scans of a person
    patients = kind().fit(scans.at(healthy), predicted[healthy]).transform(scans.at(~healthy), predicted[~healthy])
    np.testing.assert_allclose(found.gap_years[~healthy], patients)
    for fold in range(5):
        others, own = healthy & (found.fold != fold), found.fold == fold
        expected = kind().fit(scans.at(others), predicted[others]).transform(scans.at(own), predicted[own])
        np.testing.assert_allclose(found.gap_years[own], expected)


def test_cross_fitting_does_not_depend_on_the_order_of_the_rows():
    scans, predicted, healthy = mixed()
    everybody, order = np.ones(200, dtype=bool), np.random.default_rng(0).permutation(200)
    whole = cross_fit(Beheshti(), scans, predicted, healthy, everybody, seed=3)
    shuffled = cross_fit(Beheshti(), scans.at(order), predicted[order], healthy[order], everybody, seed=3)
    np.testing.assert_allclose(shuffled.gap_years, whole.gap_years[order])
    assert (shuffled.fold == whole.fold[order]).all()


def test_ones_own_error_stays_in_ones_own_gap_and_moves_that_of_the_other_folds():
    scans, predicted, healthy = mixed()
    everybody = np.ones(200, dtype=bool)
    before = cross_fit(Beheshti(), scans, predicted, healthy, everybody, seed=3)
    mine = scans.persons == scans.persons[5]
    after = cross_fit(Beheshti(), scans, predicted + 50.0 * mine, healthy, everybody, seed=3)
    moved = after.gap_years - before.gap_years
    assert moved[mine] == pytest.approx(50)
    same_fold = healthy & (before.fold == before.fold[5]) & ~mine
    assert moved[same_fold] == pytest.approx(0)
    assert (np.abs(moved[healthy & (before.fold != before.fold[5])]) > 1e-6).all()


def test_a_correction_of_other_people_is_fitted_once_and_counts_extrapolations():
    scans, predicted, healthy = mixed()
    wide = np.where(~healthy & (scans.age_years > 85), scans.age_years + 20, scans.age_years)
    scans = scans._replace(age_years=wide)
    found = cross_fit(Beheshti(), scans, predicted, healthy, ~healthy, seed=0)
    assert (found.fold == -1).all()
    assert np.isnan(found.gap_years[healthy]).all()
    outside = (wide[~healthy] > wide[healthy].max()) | (wide[~healthy] < wide[healthy].min())
    assert outside.sum() > 0
    assert f"{outside.sum()} of 40 scans outside these ages: extrapolated" in found.note
    assert "none of whom is scored" in found.note


def test_folds_of_too_few_people_and_nobody_healthy_are_refused():
    scans, predicted = healthy_people(11)
    everybody = np.ones(11, dtype=bool)
    with pytest.raises(DataError, match="found 8"):
        cross_fit(Beheshti(), scans, predicted, everybody, everybody, seed=0)
    with pytest.raises(DataError, match="nobody healthy to fit on"):
        cross_fit(Beheshti(), scans, predicted, ~everybody, everybody, seed=0)


def test_the_correction_that_is_handed_over_is_not_fitted():
    scans, predicted, healthy = mixed()
    correction = Beheshti()
    kept = copy.deepcopy(vars(correction))
    cross_fit(correction, scans, predicted, healthy, np.ones(200, dtype=bool), seed=3)
    assert vars(correction) == kept
