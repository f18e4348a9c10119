"""The mixed model: against a closed form, a brute-force likelihood, a two-stage summary, and by what it refuses."""

import numpy as np
import pandas as pd
import pytest
from scipy import linalg, stats
from scipy.optimize import minimize
from statsmodels.regression.mixed_linear_model import MixedLM

from brainage.errors import DataError
from brainage.statistics import mixed as module
from brainage.statistics.contrasts import adjusted_contrast
from brainage.statistics.mixed import fit_mixed


def lines(people=40, visits=4, slope_sd=0.5, noise=1.0, effect=0.3, seed=0, jitter=0.2):
    """y, fixed terms, years, persons of people whose slopes are 0.5 (+ effect in the odd half)."""
    rng = np.random.default_rng(seed)
    persons = np.repeat(np.arange(people), visits)
    years = np.tile(np.arange(float(visits)), people) + rng.uniform(0, jitter, people * visits)
    odd = (persons % 2).astype(float)
    slope = rng.normal(0.5, slope_sd, people)[persons] + effect * odd
    y = rng.normal(0, 3, people)[persons] + slope * years + rng.normal(0, noise, people * visits)
    fixed = pd.DataFrame({"intercept": 1.0, "years": years, "odd": odd, "years x odd": years * odd})
    return y, fixed, years, persons


def restricted_likelihood(y, terms, years, persons):
    """Minus twice the REML log-likelihood of (sd intercept, covariance, sd slope, log sd), person by person."""
    blocks = [np.flatnonzero(persons == person) for person in np.unique(persons)]

    def spread(q, rows):
        lower = np.array([[q[0], 0.0], [q[1], q[2]]])
        z = np.column_stack([np.ones(len(rows)), years[rows]])
        return z @ lower @ lower.T @ z.T + np.exp(2 * q[3]) * np.eye(len(rows))

    def effects(q):
        inverse = {rows[0]: np.linalg.inv(spread(q, rows)) for rows in blocks}
        information = sum(terms[rows].T @ inverse[rows[0]] @ terms[rows] for rows in blocks)
        right = sum(terms[rows].T @ inverse[rows[0]] @ y[rows] for rows in blocks)
        return information, np.linalg.solve(information, right)

    def deviance(q):
        information, estimate = effects(q)
        total = np.linalg.slogdet(information)[1]
        for rows in blocks:
            v, left = spread(q, rows), y[rows] - terms[rows] @ estimate
            total += np.linalg.slogdet(v)[1] + left @ np.linalg.solve(v, left)
        return total

    return deviance, effects


def test_effects_and_variances_are_those_of_the_likelihood_maximised_by_brute_force():
    y, fixed, years, persons = lines(people=24)
    found = fit_mixed(y, fixed, years, persons)
    deviance, effects = restricted_likelihood(y, fixed.to_numpy(), years, persons)
    best = minimize(deviance, [3.0, 0.0, 0.5, 0.0], method="BFGS")
    lower = np.array([[best.x[0], 0.0], [best.x[1], best.x[2]]])
    random = lower @ lower.T
    information, estimate = effects(best.x)
    np.testing.assert_allclose(found.estimate, estimate, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found.covariance, np.linalg.inv(information), rtol=5e-3, atol=1e-4)
    np.testing.assert_allclose([found.sd_intercept, found.sd_slope], np.sqrt(np.diag(random)), rtol=5e-3)
    assert found.correlation == pytest.approx(random[0, 1] / np.sqrt(random[0, 0] * random[1, 1]), abs=0.01)
    assert found.sd_residual == pytest.approx(np.exp(best.x[3]), rel=5e-3)
    assert found.converged
    assert (found.people, found.followed, found.scans) == (24, 24, 96)
    assert found.within == {"years", "years x odd"}


def test_with_the_same_visits_for_everybody_the_slope_difference_is_the_t_test_of_peoples_own_slopes():
    y, fixed, years, persons = lines(people=30, jitter=0.0, seed=3)
    own = np.array([np.polyfit(years[persons == p], y[persons == p], 1)[0] for p in range(30)])
    theirs = stats.ttest_ind(own[1::2], own[::2])
    expected = theirs.confidence_interval(0.95)
    value, p = fit_mixed(y, fixed, years, persons).contrast({"years x odd": 1.0})
    np.testing.assert_allclose(value, [own[1::2].mean() - own[::2].mean(), expected.low, expected.high], rtol=1e-3)
    assert p == pytest.approx(theirs.pvalue, rel=0.02)


def test_effects_and_variances_are_those_of_statsmodels_where_it_converges():
    y, fixed, years, persons = lines(people=30, seed=2)
    found = fit_mixed(y, fixed, years, persons)
    model = MixedLM(y, fixed.to_numpy(), groups=persons, exog_re=np.column_stack([np.ones(len(y)), years]))
    theirs = model.fit(reml=True, method=["lbfgs"])
    assert theirs.converged
    np.testing.assert_allclose(found.estimate, theirs.fe_params, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(np.sqrt(np.diag(found.covariance)), theirs.bse_fe, rtol=5e-3)
    np.testing.assert_allclose([found.sd_intercept, found.sd_slope], np.sqrt(np.diag(theirs.cov_re)), rtol=5e-3)
    assert found.sd_residual == pytest.approx(np.sqrt(theirs.scale), rel=5e-3)


def test_the_sandwich_and_its_freedom_are_those_of_whole_matrices():
    y, fixed, years, persons = lines(people=20, visits=3, seed=4)
    kept = np.r_[True, persons[1:] != persons[:-1]] | (persons < 4) | ((years < 1.5) & (persons < 17))
    y, fixed, years, persons = y[kept], fixed[kept], years[kept], persons[kept]
    found = fit_mixed(y, fixed, years, persons)
    assert not found.converged
    v = found.sd_intercept**2 * (persons[:, None] == persons) + found.sd_residual**2 * np.eye(len(y))
    white = linalg.inv(linalg.sqrtm(v).real)
    x, e = white @ fixed.to_numpy(), white @ (y - fixed.to_numpy() @ found.estimate)
    bread = np.linalg.inv(x.T @ x)
    maker = np.eye(len(y)) - x @ bread @ x.T
    scores, forms = [], []
    for person in range(20):
        rows = persons == person
        adjusted = x[rows].T @ linalg.inv(linalg.sqrtm(maker[np.ix_(rows, rows)]).real)
        scores.append(bread @ adjusted @ e[rows])
        forms.append((bread @ adjusted)[1] @ maker[rows])  # of the slope, in independent residuals
    np.testing.assert_allclose(found.covariance, np.transpose(scores) @ scores, rtol=1e-6)
    spectrum = linalg.eigvalsh(np.array(forms) @ np.transpose(forms))
    value, p = found.contrast({"years": 1.0})
    freedom = spectrum.sum() ** 2 / (spectrum**2).sum()
    t = value.estimate / np.sqrt(found.covariance[1, 1])
    assert p == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-6)
    assert value.high - value.estimate == pytest.approx(stats.t.ppf(0.975, freedom) * value.estimate / t, rel=1e-6)


def test_a_weighted_sum_of_effects_has_the_interval_of_its_variance():
    y, fixed, years, persons = lines()
    found = fit_mixed(y, fixed, years, persons)
    value, _ = found.contrast({"years": 1.0, "years x odd": 1.0})
    assert value.estimate == pytest.approx(found.estimate[1] + found.estimate[3])
    variance = found.covariance[1, 1] + found.covariance[3, 3] + 2 * found.covariance[1, 3]
    assert value.high - value.estimate == pytest.approx(stats.t.ppf(0.975, 38) * np.sqrt(variance))
    with pytest.raises(DataError, match="no term 'even'"):
        found.contrast({"even": 1.0})


def test_units_and_the_order_of_the_rows_are_of_no_consequence():
    y, fixed, years, persons = lines()
    found = fit_mixed(y, fixed, years, persons)
    order = np.random.default_rng(1).permutation(len(y))
    days = fixed.assign(years=fixed["years"] * 365.25, **{"years x odd": fixed["years x odd"] * 365.25})
    other = fit_mixed(1000 * y[order], days.iloc[order], 365.25 * years[order], persons[order])
    np.testing.assert_allclose(other.estimate[[1, 3]] * 365.25 / 1000, found.estimate[[1, 3]], rtol=1e-3)
    assert other.sd_slope * 365.25 / 1000 == pytest.approx(found.sd_slope, rel=1e-3)


def test_people_with_one_visit_take_part_in_the_intercept():
    y, fixed, years, persons = lines(people=30)
    first = np.r_[True, persons[1:] != persons[:-1]]
    kept = first | (persons < 20)
    found = fit_mixed(y[kept], fixed[kept], years[kept], persons[kept])
    assert (found.people, found.followed, found.scans) == (30, 20, 90)
    assert found.converged


def test_two_visits_a_person_fall_back_on_random_intercepts_with_robust_errors_and_say_so():
    y, fixed, years, persons = lines(people=60, visits=2, jitter=0.0, slope_sd=1.0)
    found = fit_mixed(y, fixed, years, persons)
    assert not found.converged
    assert np.isnan([found.sd_slope, found.correlation]).all()
    assert "random intercept only" in found.method
    assert "fewer than 5 people have three visits" in found.method
    own = y[1::2] - y[::2]
    theirs = adjusted_contrast(own[:, None], np.arange(60) % 2 == 1, np.empty((60, 0)), np.zeros(60))[0]
    value, p = found.contrast({"years x odd": 1.0})
    np.testing.assert_allclose(value, theirs.difference, rtol=1e-6)
    assert p == pytest.approx(theirs.p, rel=1e-6)


def test_two_visits_of_a_small_and_a_large_group_have_the_error_of_welch_and_few_degrees_of_freedom():
    y, fixed, years, persons = lines(people=50, visits=2, jitter=0.0, seed=5)
    few = persons < 5
    fixed = fixed.drop(columns=["odd", "years x odd"]).assign(few=few * 1.0, slower=few * years)
    value, p = fit_mixed(y, fixed, years, persons).contrast({"slower": 1.0})
    own = y[1::2] - y[::2]
    theirs = stats.ttest_ind(own[:5], own[5:], equal_var=False)
    error = (own[:5].mean() - own[5:].mean()) / theirs.statistic
    freedom = (1 / 5 + 1 / 45) ** 2 / (1 / (25 * 4) + 1 / (45**2 * 44))  # Welch's, were the spreads equal
    assert value.high - value.estimate == pytest.approx(stats.t.ppf(0.975, freedom) * error, rel=1e-6)
    assert p == pytest.approx(2 * stats.t.sf(abs(theirs.statistic), freedom), rel=1e-6)


def test_the_effect_of_what_one_person_alone_has_is_refused_in_the_fallback_and_no_other():
    y, fixed, years, persons = lines(people=30, visits=2, seed=6)
    man = (persons == 3) * 1.0
    alone = fit_mixed(y, fixed.assign(man=man, **{"years x man": man * years}), years, persons)
    with pytest.raises(DataError, match="one person alone tells a term"):
        alone.contrast({"man": 1.0})
    others = persons != 3
    without = fit_mixed(y[others], fixed[others], years[others], persons[others]).contrast({"years x odd": 1.0})[0]
    np.testing.assert_allclose(alone.contrast({"years x odd": 1.0})[0], without, rtol=1e-4)


def test_a_fit_that_does_not_converge_is_named_and_not_used(monkeypatch):
    y, fixed, years, persons = lines()
    monkeypatch.setattr(module, "_STEEP", 0.0)
    with pytest.raises(DataError, match=r"not even random intercepts.*did not converge"):
        fit_mixed(y, fixed, years, persons)
    whole = module._Data.fit
    monkeypatch.setattr(module, "_STEEP", 0.02)
    monkeypatch.setattr(
        module._Data, "fit", lambda data, *, slopes: (None, "of rain") if slopes else whole(data, slopes=False)
    )
    found = fit_mixed(y, fixed, years, persons)
    assert found.method.endswith("since of rain")
    assert not found.converged


@pytest.mark.parametrize("seed", range(6))
def test_equal_slopes_of_all_people_are_on_the_boundary_and_still_fitted(seed):
    y, fixed, years, persons = lines(slope_sd=0.0, seed=seed)
    found = fit_mixed(y, fixed, years, persons)
    assert found.converged
    assert found.sd_slope < 0.4
    value, _ = found.contrast({"years": 1.0})
    assert abs(value.estimate - 0.5) < 5 * (value.high - value.estimate)


def test_what_cannot_be_fitted_is_refused_with_the_reason():
    y, fixed, years, persons = lines()
    with pytest.raises(DataError, match="nobody has two visits"):
        fit_mixed(y, fixed, years, np.arange(len(y)))
    with pytest.raises(DataError, match="at the same time"):
        fit_mixed(y, fixed, persons.astype(float), persons)
    with pytest.raises(DataError, match="not told apart"):
        fit_mixed(y, fixed.assign(again=fixed["odd"] * 2), years, persons)
    with pytest.raises(DataError, match="not finite"):
        fit_mixed(np.where(np.arange(len(y)) == 3, np.nan, y), fixed, years, persons)
    with pytest.raises(DataError, match="no scatter"):
        fit_mixed(fixed.to_numpy() @ np.ones(4), fixed, years, persons)
    with pytest.raises(DataError, match="nobody has two visits"):
        fit_mixed(y[:0], fixed[:0], years[:0], persons[:0])
