"""Adjusted contrasts: against statsmodels, scipy, the bootstrap, a brute-force matrix, and by their coverage."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from brainage.errors import DataError
from brainage.statistics.contrasts import Scale, adjusted_contrast, small_sample_factor


def study(n=120, sites=6, seed=0, effect=3.0):
    """(values, first group, covariates, sites): two outcomes; the first group is older and its values spread more."""
    rng = np.random.default_rng(seed)
    first = rng.random(n) < 0.3
    age, male, site = rng.uniform(55, 85, n) + 4 * first, rng.integers(0, 2, n), rng.integers(0, sites, n)
    y = effect * first - 0.3 * age + 2 * male + 1.5 * site + rng.normal(0, np.where(first, 5, 2))
    return np.column_stack([y, rng.normal(size=n)]), first, np.column_stack([age, male]), site


def whole_design(first, covariates, sites):
    return np.column_stack([first, covariates, sites[:, None] == np.unique(sites)]).astype(float)


def test_difference_and_error_are_those_of_statsmodels_with_one_dummy_a_site():
    values, first, covariates, sites = study()
    found = adjusted_contrast(values, first, covariates, sites)
    X = whole_design(first, covariates, sites)
    for contrast, y in zip(found, values.T, strict=True):
        fit = sm.OLS(y, X).fit(cov_type="HC2", use_t=True)
        half = stats.t.ppf(0.975, contrast.df) * fit.bse[0]
        expected = (fit.params[0], fit.params[0] - half, fit.params[0] + half)
        assert tuple(contrast.difference) == pytest.approx(expected)
        assert contrast.p == pytest.approx(2 * stats.t.sf(abs(fit.tvalues[0]), contrast.df))
        assert contrast.sd == pytest.approx(np.sqrt(sm.OLS(y, X).fit().scale))


@pytest.mark.parametrize("seed", range(3))
def test_the_degrees_of_freedom_are_those_of_the_whole_matrix(seed):
    values, first, covariates, sites = study(60, seed=seed)
    X = whole_design(first, covariates, sites)
    pseudo = np.linalg.pinv(X)
    maker = np.eye(60) - X @ pseudo
    B = maker @ np.diag(pseudo[0] ** 2 / np.diag(maker)) @ maker
    eigenvalues = np.linalg.eigvalsh(B)
    expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert adjusted_contrast(values, first, covariates, sites)[0].df == pytest.approx(expected)


def test_without_covariates_on_one_site_the_error_is_welchs():
    values, first, _, _ = study()
    found = adjusted_contrast(values[:, :1], first, np.empty((120, 0)), np.zeros(120))[0]
    welch = stats.ttest_ind(values[first, 0], values[~first, 0], equal_var=False)
    half = (found.difference.high - found.difference.low) / 2 / stats.t.ppf(0.975, found.df)
    assert found.difference.estimate / half == pytest.approx(welch.statistic)


def test_hedges_g_is_the_textbooks_without_covariates_and_its_factor_the_exact_one():
    rng = np.random.default_rng(0)
    first = np.arange(30) < 12
    y = rng.normal(first * 1.0, 1)
    found = adjusted_contrast(y[:, None], first, np.empty((30, 0)), np.zeros(30))[0]
    pooled = np.sqrt((11 * y[first].var(ddof=1) + 17 * y[~first].var(ddof=1)) / 28)
    d = (y[first].mean() - y[~first].mean()) / pooled
    assert found.hedges_g.estimate == pytest.approx(small_sample_factor(28) * d)
    draws = np.random.default_rng(1).normal(0.5, 1, (200_000, 8)).std(axis=1, ddof=1)
    assert 0.5 * np.mean(1 / draws) * small_sample_factor(7) == pytest.approx(0.5, abs=0.002)  # unbiased


def test_the_interval_of_g_is_that_of_the_bootstrap_with_unequal_spreads():
    values, first, covariates, sites = study(400, sites=3, seed=4)
    found = adjusted_contrast(values[:, :1], first, covariates, sites)[0].hedges_g
    rng, drawn = np.random.default_rng(0), []
    for _ in range(600):
        rows = rng.integers(0, 400, 400)
        drawn.append(adjusted_contrast(values[rows, :1], first[rows], covariates[rows], sites[rows])[0])
    low, high = np.percentile([one.hedges_g.estimate for one in drawn], [2.5, 97.5])
    assert (high - low) / (found.high - found.low) == pytest.approx(1, abs=0.12)
    assert found.low == pytest.approx(low, abs=0.12 * (high - low))


def test_constant_repeated_and_badly_scaled_covariates_change_nothing():
    values, first, covariates, sites = study()
    plain = adjusted_contrast(values, first, covariates, sites)
    more = np.column_stack([covariates, covariates[:, 0] * 1e6, np.full(120, 3e9), sites == 2])
    for one, other in zip(plain, adjusted_contrast(values, first, more, sites), strict=True):
        assert tuple(other.difference) == pytest.approx(tuple(one.difference))
        assert other.df == pytest.approx(one.df)
        assert other.sd == pytest.approx(one.sd)


def test_people_alone_at_their_site_change_nothing():
    values, first, covariates, sites = study()
    plain = adjusted_contrast(values, first, covariates, sites)[0]
    more = np.r_[values, [[99.0, 99.0], [-99.0, 0.0]]], np.r_[first, True, False], np.r_[covariates, [[70, 1], [60, 0]]]
    lonely = adjusted_contrast(*more, np.r_[sites, 100, 101])[0]
    assert tuple(lonely.difference) == pytest.approx(tuple(plain.difference))
    assert (lonely.df, lonely.sd) == pytest.approx((plain.df, plain.sd))


def test_a_group_that_is_a_site_or_an_age_cannot_be_told_from_it():
    values, first, covariates, sites = study()
    with pytest.raises(DataError, match="cannot be told from site"):
        adjusted_contrast(values, first, covariates, sites + 100 * first)
    with pytest.raises(DataError, match="cannot be told from site"):
        adjusted_contrast(values, first, np.column_stack([covariates, 5.0 * first]), sites)
    with pytest.raises(DataError, match="cannot be told from site"):
        adjusted_contrast(values, np.ones(120, dtype=bool), covariates, sites)


def test_too_few_people_and_values_without_spread_are_refused():
    values, first, covariates, sites = study()
    with pytest.raises(DataError, match="too few"):
        adjusted_contrast(values[:4], np.array([1, 0, 1, 0]) > 0, covariates[:4], np.zeros(4))
    with pytest.raises(DataError, match="do not vary otherwise"):
        adjusted_contrast(covariates[:, :1] * -0.3, first, covariates, sites)


def test_the_error_of_an_estimated_factor_is_that_of_both_equations_solved_together():
    """Outcome / factor, the factor a mean over the people themselves and others: against the bootstrap."""
    rng = np.random.default_rng(3)
    first, sites, covariates = np.arange(300) < 100, np.zeros(300), np.empty((300, 0))
    noise, others = rng.normal(0, 1, 300), 2 + rng.normal(0, 1, 100)
    y, part = 4.0 * first + noise, 2 + np.where(first, noise, 0) + rng.normal(0, 0.5, 300)

    def influences(part, others):
        mean, n = np.r_[part, others].mean(), len(part) + len(others)
        return mean, -(part - mean) / n / mean, -(others - mean) / n / mean

    mean, own, rest = influences(part, others)
    scales = {0: Scale(own, float((rest**2).sum()))}
    plain, found = (
        adjusted_contrast(y[:, None] / mean, first, covariates, sites, given)[0] for given in (None, scales)
    )
    drawn = []
    for _ in range(1500):
        rows, more = rng.integers(0, 300, 300), rng.integers(0, 100, 100)
        factor = np.r_[part[rows], others[more]].mean()
        drawn.append((y[rows][first[rows]].mean() - y[rows][~first[rows]].mean()) / factor)
    width = 2 * stats.t.ppf(0.975, found.df) * np.std(drawn)
    assert found.difference.high - found.difference.low == pytest.approx(width, rel=0.06)
    assert plain.difference.high - plain.difference.low != pytest.approx(width, rel=0.06)
    assert (found.p, found.hedges_g) == (plain.p, plain.hedges_g)


@pytest.mark.slow
def test_a_small_group_of_larger_spread_is_covered_at_its_rate_where_the_classical_interval_is_not():
    """8 people against 120: 95 % intervals within the 99.9 % binomial bounds of 2,000 draws, both effects fixed."""
    held, classical = [], []
    for seed in range(2000):
        rng = np.random.default_rng([11, seed])
        first, age = np.arange(128) < 8, rng.uniform(55, 85, 128)
        y = 2.0 * first - 0.2 * age + rng.normal(0, np.where(first, 4, 2))
        low, high = adjusted_contrast(y[:, None], first, age[:, None], np.arange(128) % 4)[0].difference[1:]
        held.append(low <= 2 <= high)
        if seed < 500:
            fit = sm.OLS(y, whole_design(first, age[:, None], np.arange(128) % 4)).fit()
            classical.append(fit.conf_int()[0, 0] <= 2 <= fit.conf_int()[0, 1])
    print(f"coverage {np.mean(held):.4f}, classical {np.mean(classical):.4f}")
    assert 0.934 <= np.mean(held) <= 0.966
    assert np.mean(classical) < 0.85
