"""Probes against scikit-learn on the same folds, and the refusals that keep scored people out of the fit."""

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV

from brainage.downstream.probes import (
    PENALTIES,
    WIDE_PENALTIES,
    RidgeProbe,
    SiteProbe,
    fitted_and_scored,
    grouped_folds,
    people,
)
from brainage.downstream.softmax import fit_softmax_path
from brainage.errors import ConfigError, DataError, LeakageError

from .cohort import make_table


def regression(n, D, seed=0, noise=8.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, D)) * np.exp(-np.arange(D) / 8)
    y = 50 + X @ rng.normal(size=D) * 5 + rng.normal(size=n) * noise
    return X, y, rng.permutation(n) // 2  # two scans a person


@pytest.mark.parametrize(("n", "D", "noise"), [(80, 12, 8.0), (60, 150, 8.0), (90, 30, 0.01), (41, 40, 30.0)])
def test_the_age_probe_chooses_and_predicts_as_scikit_learn_does(n, D, noise):
    X, y, groups = regression(n, D, seed=n, noise=noise)
    X[:, 3] = 7.5  # a dead unit
    probe = RidgeProbe(seed=4).fit(X, y, groups)
    search = GridSearchCV(Ridge(), {"alpha": PENALTIES}, scoring="r2", cv=grouped_folds(groups, 4)).fit(X, y)
    assert probe.alpha_ == search.best_params_["alpha"]
    np.testing.assert_allclose(probe.scores_, search.cv_results_["mean_test_score"], atol=1e-9)
    np.testing.assert_allclose(probe.predict(X[::-1]), search.predict(X[::-1]), rtol=1e-8)


@pytest.mark.parametrize(("n", "D"), [(120, 10), (40, 90), (60, 50)])
def test_factors_of_the_folds_give_the_ridge_of_their_rows(n, D):
    """Parts with fewer rows than features and with more; against the normal equations."""
    X, y, groups = regression(n, D)
    probe = RidgeProbe(alphas=[0.1, 10.0]).fit(X, y, groups)
    for column, alpha in enumerate(probe.alphas):
        scores = []
        for train, held_out in grouped_folds(groups, 0):
            mean, centre = X[train].mean(axis=0), y[train].mean()
            Z = X[train] - mean
            coef = np.linalg.solve(Z.T @ Z + alpha * np.eye(D), Z.T @ (y[train] - centre))
            error = y[held_out] - centre - (X[held_out] - mean) @ coef
            scores.append(1 - (error**2).sum() / ((y[held_out] - y[held_out].mean()) ** 2).sum())
        np.testing.assert_allclose(probe.scores_[column], np.mean(scores), rtol=1e-9)


def test_the_cases_above_choose_different_penalties():
    chosen = {RidgeProbe(seed=4).fit(*regression(n, D, n, s)).alpha_ for n, D, s in [(80, 12, 8), (90, 30, 0.01)]}
    assert len(chosen) == 2


def test_features_of_very_different_units_are_solved_as_accurately():
    X, y, groups = regression(80, 12)
    X = X * np.logspace(-2, 6, 12) + 1e6
    probe, reference = RidgeProbe(alphas=[0.1]).fit(X, y, groups), Ridge(0.1, solver="svd").fit(X, y)
    np.testing.assert_allclose(probe.predict(X), reference.predict(X), rtol=1e-7)


def test_a_standardised_probe_ignores_units_and_features_that_are_constant_up_to_rounding():
    X, y, groups = regression(80, 12)
    noise = np.random.default_rng(1).normal(size=(80, 2))
    odd = np.column_stack([X * np.logspace(-3, 3, 12), 5 + 1e-7 * noise[:, 0], np.zeros(80)])
    one, other = (RidgeProbe(WIDE_PENALTIES, standardise=True).fit(one, y, groups) for one in (X, odd))
    assert other.coef_[-2:].tolist() == [0, 0]
    np.testing.assert_allclose(one.predict(X), other.predict(odd), rtol=1e-8)


def test_folds_hold_out_whole_people_once_and_follow_the_seed_not_the_order():
    groups = np.array([f"p{i}" for i in np.random.default_rng(0).integers(0, 23, 60)])
    folds = grouped_folds(groups, 1)
    held_out = np.concatenate([test for _, test in folds])
    assert sorted(held_out) == list(range(60))
    for train, test in folds:
        assert set(groups[train]) & set(groups[test]) == set()
    counts = [len(set(groups[test])) for _, test in folds]
    assert max(counts) - min(counts) <= 1
    of_person = {p: fold for fold, (_, test) in enumerate(grouped_folds(groups[::-1], 1)) for p in groups[::-1][test]}
    assert all(of_person[p] == fold for fold, (_, test) in enumerate(folds) for p in groups[test])
    assert any(
        set(groups[test]) != set(groups[other])
        for (_, test), (_, other) in zip(folds, grouped_folds(groups, 2), strict=True)
    )


def test_few_people_get_fewer_folds_and_three_are_refused():
    assert len(grouped_folds(np.arange(7), 0)) == 3
    assert RidgeProbe().fit(*regression(8, 3)).folds_ == 2
    with pytest.raises(DataError, match="at least 4 people to fit on, found 3"):
        grouped_folds(np.array([1, 1, 2, 3, 3]), 0)


def test_probes_refuse_values_that_are_not_finite():
    X, y, groups = regression(20, 3)
    with pytest.raises(DataError, match="1 of 20 ages"):
        RidgeProbe().fit(X, np.where(np.arange(20) == 3, np.nan, y), groups)
    X[5, 1] = np.inf
    with pytest.raises(DataError, match="1 of 20 rows"):
        RidgeProbe().fit(X, y, groups)
    with pytest.raises(DataError, match="1 of 20 rows"):
        SiteProbe().fit(X, groups % 2, groups)
    with pytest.raises(DataError, match="shape"):
        RidgeProbe().fit(X[:, 0], y, groups)


def sites(n=160, D=10, K=4, signal=0.8, seed=0):
    rng = np.random.default_rng(seed)
    site = rng.integers(0, K, n)
    X = (rng.normal(size=(n, D)) + signal * rng.normal(size=(K, D))[site]) * np.exp(-np.arange(D) / 3) + 5
    return X, np.array([f"site{s}" for s in site]), np.arange(n) // 2


@pytest.mark.parametrize("K", [2, 4])
@pytest.mark.parametrize("D", [10, 200])
def test_the_softmax_solution_is_the_one_of_scikit_learn(K, D):
    X, y, _ = sites(D=D, K=K)
    X[:, 2] = 1.0
    codes = np.unique(y, return_inverse=True)[1]
    for C, model in zip(PENALTIES, fit_softmax_path(X, codes, PENALTIES, tolerance=1e-8), strict=True):
        assert model.converged
        reference = LogisticRegression(C=C, tol=1e-10, max_iter=100_000).fit(X - X.mean(axis=0), y)
        scores = X @ model.coef + model.intercept
        probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(probabilities, reference.predict_proba(X - X.mean(axis=0)), atol=2e-5)


def test_where_a_fit_starts_is_of_no_consequence_and_the_gradient_says_that_it_converged():
    X, y, _ = sites(D=30)
    codes = np.unique(y, return_inverse=True)[1]
    models = fit_softmax_path(X, codes, PENALTIES)
    rng = np.random.default_rng(0)
    away = [m._replace(coef=m.coef + rng.normal(size=m.coef.shape), intercept=m.intercept + 3) for m in models]
    again = fit_softmax_path(X, codes, PENALTIES, starts=away[::-1])
    for C, model, other in zip(PENALTIES, models, again, strict=True):
        probabilities = softmax(model.scores(X), axis=1)
        np.testing.assert_allclose(softmax(other.scores(X), axis=1), probabilities, atol=2e-3)
        slope = (X - X.mean(axis=0)).T @ (probabilities - np.eye(4)[codes]) / len(X) + model.coef / (C * len(X))
        variance = ((X - X.mean(axis=0)) ** 2).mean(axis=0)
        assert np.abs(slope / np.sqrt(variance[:, None] / 4 + 1 / (C * len(X)))).max() < 1e-4
    (stopped,) = fit_softmax_path(X, codes, [100.0], max_iter=2)
    assert not stopped.converged


def test_float32_that_cannot_reach_the_tolerance_is_finished_in_float64():
    X, y, _ = sites(D=30)
    (model,) = fit_softmax_path(X * 1e5, np.unique(y, return_inverse=True)[1], [100.0], tolerance=1e-9)
    assert model.converged


@pytest.mark.parametrize("solver", ["lbfgs", "saga"])
def test_scores_rank_the_sites_as_the_prediction_does(solver):
    X, y, groups = sites()
    probe = SiteProbe(solver).fit(X, y, groups)
    assert probe.scores(X).shape == (len(y), 4)
    assert (probe.classes_[probe.scores(X).argmax(axis=1)] == probe.predict(X)).all()


def test_a_fold_without_some_site_starts_from_the_others():
    X, y, groups = sites()
    y = np.where(groups == groups[0], "lonely", y)  # 5 sites, 4 of them in the fold that holds this one out
    probe = SiteProbe(seed=2).fit(X, y, groups)
    newton = LogisticRegression(solver="newton-cholesky", tol=1e-8)
    search = GridSearchCV(newton, {"C": PENALTIES}, scoring=_balanced, cv=grouped_folds(groups, 2)).fit(X, y)
    np.testing.assert_allclose(probe.scores_, search.cv_results_["mean_test_score"], atol=1e-12)


def _balanced(model, X, y):
    """scikit-learn's own score divides by the classes of the truth alone too, but warns of unknown ones."""
    found = model.predict(X)
    return np.mean([(found[y == site] == site).mean() for site in np.unique(y)])


@pytest.mark.parametrize("solver", ["lbfgs", "saga"])
def test_the_site_probe_chooses_and_predicts_as_scikit_learn_does(solver):
    X, y, groups = sites()
    published = {"solver": "saga", "max_iter": 150, "random_state": 3}
    model = LogisticRegression(**(published if solver == "saga" else {"solver": "newton-cholesky", "tol": 1e-8}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = GridSearchCV(model, {"C": PENALTIES}, scoring="balanced_accuracy", cv=grouped_folds(groups, 3))
        search.fit(X, y)
    probe = SiteProbe(solver, seed=3).fit(X, y, groups)
    np.testing.assert_allclose(probe.scores_, search.cv_results_["mean_test_score"], atol=1e-12)
    assert search.best_params_ == {"C": probe.C_}
    assert (probe.predict(X) == search.predict(X)).all()


def test_the_published_solver_says_that_it_stopped_half_way():
    X, y, groups = sites(60)
    assert not SiteProbe("saga").fit(X * 50, y, groups).converged_
    assert SiteProbe().fit(X * 50, y, groups).converged_
    assert not SiteProbe(max_iter=2).fit(X, y, groups).converged_


def test_a_site_of_one_person_is_counted_and_still_learnt():
    X, y, groups = sites()
    y = np.where(groups == groups[0], "lonely", y)
    X[groups == groups[0]] += 20
    probe = SiteProbe().fit(X, y, groups)
    assert probe.lonely_sites_ == ["lonely"]
    assert (probe.predict(X[groups == groups[0]]) == "lonely").all()
    one_each = SiteProbe().fit(X[:8], np.array(["a"] * 6 + ["b"] * 2), np.arange(8) // 2)
    assert one_each.lonely_sites_ == ["b"]
    with pytest.raises(DataError, match="two sites or more"):
        SiteProbe().fit(X, np.full(len(y), "a"), groups)


def test_people_are_fitted_or_scored_never_both():
    table = make_table(8, 3, 4, 5)
    fitted, scored = fitted_and_scored(table, ["train", "val"])
    assert fitted["split"].value_counts().to_dict() == {"train": 8, "val": 3}
    assert scored["split"].value_counts().to_dict() == {"test_internal": 4, "test_external": 5}
    assert set(people(fitted)) & set(people(scored)) == set()
    with pytest.raises(LeakageError, match="holds test_external"):
        fitted_and_scored(table, ["train", "test_external"])
    with pytest.raises(ConfigError, match="'trian' is no split"):
        fitted_and_scored(table, ["trian"])
    with pytest.raises(DataError, match="no scan in val"):
        fitted_and_scored(make_table(8, 0, 4, 5), ["val"])


def test_a_subject_put_into_two_splits_is_refused():
    table = make_table(8, 3, 4, 5)
    again = table[table["split"] == "train"][:1].assign(split="test_external", session_id="again")
    with pytest.raises(LeakageError, match="demo/train"):
        fitted_and_scored(pd.concat([table, again], ignore_index=True), ["train"])


def test_a_scan_without_a_split_is_refused():
    table = make_table(8, 3, 4, 5)
    table.loc[2, "split"] = pd.NA
    with pytest.raises(DataError, match="1 scans have no split"):
        fitted_and_scored(table, ["train"])


def test_scoring_needs_no_torch():
    """Reports and studies score on machines that never train; importing torch would cost them seconds."""
    code = "import sys, brainage.downstream.age, brainage.downstream.site; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
