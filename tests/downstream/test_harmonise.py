"""Harmonisation against the published formula written out, neuroCombat's numbers, statsmodels, and broken input."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from brainage.config import EvaluateConfig
from brainage.downstream.features import Features
from brainage.downstream.harmonise import Combat, CovariateResidual, Covariates, SiteResidual, harmonise
from brainage.errors import ConfigError, DataError

from .cohort import make_features, make_table

# neuroCombat 0.2.12 (numpy 2.4, pandas 3.0) on `known_input()`, its first four scans.
NEUROCOMBAT = [
    [3.218433, 4.344570, 3.508775, 4.248908],
    [4.105495, 3.808291, 3.592830, 1.005475],
    [3.371596, 2.626527, 3.774050, 5.477319],
    [3.376467, 3.877392, 4.300249, 2.992726],
]


def known_input():
    i = np.arange(24)
    shifts = [(i % 3 == 1) * (0.5 + 0.4 * j) + (i % 3 == 2) * np.cos(5 * i + j) for j in range(4)]
    X = np.column_stack([3 + np.sin(i * (j + 1)) * (1 + 0.3 * j) + shifts[j] for j in range(4)])
    return X, np.array(["a", "b", "c"])[i % 3], np.cos(i * 1.7)[:, None]


def drawn(n=90, D=6, seed=0):
    rng = np.random.default_rng(seed)
    sites, C = rng.choice(list("abc"), n, p=[0.6, 0.3, 0.1]), rng.normal(size=(n, 2))
    X = rng.normal(size=(n, D)) * rng.uniform(0.5, 2, D) + C @ rng.normal(size=(2, D)) + 5
    X += (sites == "b")[:, None] * rng.normal(0.5, 0.5, D)
    X *= np.where(sites == "c", 1.5, 1.0)[:, None]
    return X, sites, C


def written_out(X, sites, C):
    """ComBat as Johnson 2007 gives it, one site and one feature at a time."""
    names = sorted(set(sites))
    n, D = X.shape
    design = np.array([[float(site == name) for name in names] + list(c) for site, c in zip(sites, C, strict=True)])
    adjusted, standard, alpha, beta, sigma = np.empty_like(X), np.empty_like(X), [], [], []
    for g in range(D):
        fit = sm.OLS(X[:, g], design).fit()
        alpha.append(sum((sites == name).mean() * fit.params[k] for k, name in enumerate(names)))
        beta.append(fit.params[len(names) :])
        sigma.append(np.sqrt((fit.resid**2).sum() / n))
        standard[:, g] = (X[:, g] - alpha[g] - C @ beta[g]) / sigma[g]
    for name in names:
        z = standard[sites == name]
        located, scaled = [z[:, g].mean() for g in range(D)], [z[:, g].var(ddof=1) for g in range(D)]
        tau2, m, s2 = np.var(located, ddof=1), np.mean(scaled), np.var(scaled, ddof=1)
        lam, theta = (m**2 + 2 * s2) / s2, (m**3 + m * s2) / s2
        for g in range(D):
            gamma, delta = located[g], scaled[g]
            for _ in range(500):
                gamma = (len(z) * tau2 * located[g] + delta * np.mean(located)) / (len(z) * tau2 + delta)
                delta = (theta + 0.5 * ((z[:, g] - gamma) ** 2).sum()) / (len(z) / 2 + lam - 1)
            own = sites == name
            clean = (standard[own, g] - gamma) / np.sqrt(delta)
            adjusted[own, g] = clean * sigma[g] + alpha[g] + C[own] @ beta[g]
    return adjusted


def test_combat_is_the_published_formula():
    X, sites, C = drawn()
    assert Combat().fit(X, sites, C).transform(X, sites, C) == pytest.approx(written_out(X, sites, C), abs=1e-5)
    none = np.empty((len(X), 0))
    assert Combat().fit(X, sites).transform(X, sites) == pytest.approx(written_out(X, sites, none), abs=1e-5)


def test_combat_gives_the_numbers_of_neurocombat():
    X, sites, age = known_input()
    assert Combat().fit(X, sites, age).transform(X, sites, age)[:4] == pytest.approx(np.array(NEUROCOMBAT), abs=5e-4)


def test_a_planted_shift_and_scale_of_a_site_are_taken_from_new_people_and_age_is_left():
    rng = np.random.default_rng(1)
    D, age_effect = 8, rng.normal(size=8)

    def people(n):
        sites, age = rng.choice(["a", "b"], n), rng.normal(size=(n, 1))
        clean = age @ age_effect[None] + rng.normal(size=(n, D))
        own = clean - age @ age_effect[None]
        return np.where((sites == "b")[:, None], age @ age_effect[None] + 2 * own + 3, clean), clean, sites, age

    X, _, sites, age = people(4000)
    new, clean, new_sites, new_age = people(1000)
    found = Combat().fit(X, sites, age).transform(new, new_sites, new_age)
    difference = found[new_sites == "b"].mean(axis=0) - found[new_sites == "a"].mean(axis=0)
    assert np.abs(difference - (clean[new_sites == "b"].mean(0) - clean[new_sites == "a"].mean(0))).max() < 0.2
    kept = sm.OLS(found, sm.add_constant(new_age)).fit().params[1]
    assert kept == pytest.approx(age_effect, abs=0.2)


def test_residualisation_is_least_squares():
    X, sites, C = drawn()
    dummies = pd.get_dummies(sites).to_numpy(dtype=float)
    fit = sm.OLS(X, np.column_stack([dummies, C])).fit()
    effects = dummies @ fit.params[:3]
    assert SiteResidual().fit(X, sites, C).transform(X, sites) == pytest.approx(X - effects + effects.mean(axis=0))
    found = CovariateResidual().fit(X, sites, C).transform(X, C)
    assert found == pytest.approx(X - (C - C.mean(axis=0)) @ fit.params[3:])


def test_a_feature_without_spread_stays_and_harms_no_other():
    X, sites, C = drawn()
    dead = np.column_stack([X[:, :3], np.full(len(X), 0.7), X[:, 3:]])
    for model in (Combat, SiteResidual):
        found = model().fit(dead, sites, C).transform(dead, sites, C)
        assert found[:, 3] == pytest.approx(0.7)
        assert np.delete(found, 3, axis=1) == pytest.approx(model().fit(X, sites, C).transform(X, sites, C))


@pytest.mark.parametrize("model", [Combat, SiteResidual])
def test_what_cannot_be_harmonised_is_refused(model):
    X, sites, C = drawn()
    with pytest.raises(DataError, match="two sites or more, found 1"):
        model().fit(X, np.full(len(X), "a"))
    with pytest.raises(DataError, match="a site has 1 fitted scans"):
        model().fit(X, np.where(np.arange(len(X)) == 0, "z", "a"))
    with pytest.raises(DataError, match="cannot be told from the sites"):
        model().fit(X, sites, (sites == "b").astype(float)[:, None])
    with pytest.raises(DataError, match="NaN or infinity"):
        model().fit(X, sites, C * np.nan)
    with pytest.raises(DataError, match="site z was not fitted"):
        model().fit(X, sites).transform(X[:2], np.array(["a", "z"]))
    with pytest.raises(DataError, match="expected 90 sites and covariates, found 1"):
        model().fit(X, sites[:1])


def test_covariates_are_named_or_refused():
    table = make_table(20, 0, 5, 5).assign(tiv_ml=1500.0)
    with pytest.raises(ConfigError, match="'scanner' is no covariate"):
        Covariates(["scanner"])
    with pytest.raises(DataError, match=r"sex: 30 of 30 .* with 1 different values"):
        Covariates(["sex"]).fit(table.assign(sex=pd.array(["F"] * 30, dtype="string")))
    with pytest.raises(DataError, match="no column 'tiv_ml'"):
        Covariates(["tiv"]).fit(table.drop(columns="tiv_ml"))
    table.loc[0, "sex"] = pd.NA
    values = Covariates(["age", "sex"]).fit(table).transform(table)
    assert values[:, 0].mean() == pytest.approx(0, abs=1e-12)
    assert np.isnan(values[0, 1])
    assert set(values[1:, 1]) == {0.0, 1.0}


@pytest.mark.parametrize("how", ["combat", "residual"])
def test_test_people_change_nothing_of_what_was_fitted(how):
    table, config = make_table(scans=2), EvaluateConfig(nuisance=["age", "sex"])
    features, scored = make_features(table), table[table["split"] == "test_internal"]
    first = harmonise(features, table, how, config=config, scored=scored)
    fitted_keys = table.loc[table["split"].isin(["train", "val"]), "participant_id"]
    other = np.where(
        features.keys["participant_id"].isin(fitted_keys).to_numpy()[:, None], features.values, features.values * 7 + 3
    )
    moved = table.assign(
        age_years=table["age_years"].where(table["split"] == "train", 20.0 + np.arange(len(table)) % 9)
    )
    moved.loc[table["split"] == "val", "age_years"] = table["age_years"]
    changed = Features("exp", 0, features.keys, other.astype(np.float32))
    second = harmonise(changed, moved, how, config=config, scored=scored)
    assert (first.X == second.X).all()
    assert (first.X_scored != second.X_scored).any()


def test_a_judged_age_is_not_told_to_the_features():
    table, config = make_table(), EvaluateConfig(nuisance=["age"])
    features, scored = make_features(table), table[table["split"] == "test_internal"]
    guess = pd.Series(np.linspace(30, 60, len(table)), index=table.index)
    first, second = (
        harmonise(features, table, "combat", config=config, scored=rows, ages=guess)
        for rows in (scored, scored.assign(age_years=50.0))
    )
    assert (first.X_scored == second.X_scored).all()
    true = harmonise(features, table, "combat", config=config, scored=scored)
    assert (true.X != first.X).any()  # the fitted people's are guesses too: both are read alike


def test_who_is_left_out_or_stays_is_counted():
    table = make_table().assign(tiv_ml=np.linspace(1200, 1800, 114))
    config = EvaluateConfig(nuisance=["tiv"])
    train, internal = (table.index[table["split"] == split] for split in ("train", "test_internal"))
    table.loc[train[0], "site"], table.loc[train[1], "site"] = "lonely", pd.NA
    table.loc[[train[2], internal[0]], "tiv_ml"] = np.nan
    found = harmonise(
        make_features(table), table, "combat", config=config, scored=table[table["split"].str[:4] == "test"]
    )
    assert "left out: 3 fitted and 1 scored scans, 1 sites of one fitted scan" in found.note
    assert "combat fitted on 67 scans of 3 sites, keeping tiv" in found.note
    assert len(found.scored) == 43
    far = (found.scored["split"] == "test_external").to_numpy()
    assert (found.changed == ~far).all()
    unchanged = harmonise(make_features(table), table, "residual", config=EvaluateConfig(), scored=found.scored[far])
    assert (unchanged.X_scored == found.X_scored[far]).all()
