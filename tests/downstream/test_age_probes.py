"""Age probes against scikit-learn's estimators, on known truths, and with what must be refused."""

import os

import numpy as np
import pandas as pd
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsRegressor

from brainage.config import EvaluateConfig
from brainage.data.table import KEY, finish_table
from brainage.downstream.age import evaluate_age
from brainage.downstream.age_probes import AGE_PROBES, KnnProbe, fit_age_probe, out_of_fold_years
from brainage.downstream.features import Features
from brainage.downstream.kernel_probes import ALPHAS, WIDTHS, KernelRidgeProbe
from brainage.downstream.probes import grouped_folds
from brainage.downstream.results import parts_of
from brainage.errors import ConfigError, DataError
from brainage.statistics.nystroem import choose_landmarks, typical_distance

REAL = os.environ.get("BRAINAGE_REAL_DATA", "")
EVERY_PROBE = pytest.mark.parametrize("name", list(AGE_PROBES))


def cohort(n=160, D=6, seed=0, scans=2):
    """(features, ages, person of each scan); the second scan of a person is the first with a little noise."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(n // scans), scans)
    X = rng.normal(size=(n // scans, D))[person] + rng.normal(0, 0.05, (n, D))
    age = 50 + 9 * X[:, 0] + 6 * np.sin(2 * X[:, 1]) + rng.normal(0, 2, n // scans)[person]
    return X * np.logspace(-2, 3, D), age, np.array([f"p{p:03d}" for p in person])


def standardised(X, new):
    return (X - X.mean(axis=0)) / X.std(axis=0), (new - X.mean(axis=0)) / X.std(axis=0)


@EVERY_PROBE
def test_every_probe_learns_age_and_predicts_years_for_new_people(name):
    X, y, groups = cohort()
    new, truth, _ = cohort(seed=1)
    probe = fit_age_probe(name, X, y, groups, seed=0)
    error = np.abs(probe.predict(new) - truth).mean()
    assert error < 0.7 * np.abs(y.mean() - truth).mean()
    assert probe.name == name
    assert probe.note
    sd = probe.predict_sd(new)
    assert (sd is not None) == (name == "gaussian_process")


def test_kernel_ridge_is_scikit_learns_with_the_width_and_penalty_of_its_grid_search():
    X, y, groups = cohort()
    new = cohort(seed=1)[0]
    probe = KernelRidgeProbe(seed=3).fit(X, y, groups)
    inside, outside = standardised(X, new)
    unit, folds = typical_distance(inside), grouped_folds(groups, 3)
    scores = np.empty((len(WIDTHS), len(ALPHAS)))
    for row, width in enumerate(WIDTHS):
        for column, alpha in enumerate(ALPHAS):
            model = KernelRidge(alpha=alpha, kernel="rbf", gamma=0.5 / (width * unit) ** 2)
            scores[row, column] = np.mean([
                r2_score(y[b], model.fit(inside[a], y[a] - y[a].mean()).predict(inside[b]) + y[a].mean())
                for a, b in folds
            ])  # fmt: skip
    np.testing.assert_allclose(probe.scores_, scores, atol=1e-3)  # the jitter of the landmarks beside alpha 1e-6
    best = np.unravel_index(np.argmax(scores), scores.shape)
    assert (probe.relative_width_, probe.alpha_) == (WIDTHS[best[0]], ALPHAS[best[1]])
    model = KernelRidge(alpha=probe.alpha_, kernel="rbf", gamma=0.5 / probe.width_**2).fit(inside, y - y.mean())
    np.testing.assert_allclose(probe.predict(new), model.predict(outside) + y.mean(), rtol=1e-5)
    assert probe.note_.endswith("exact on 160 scans")


def test_kernel_ridge_above_its_limit_is_ridge_on_scikit_learns_nystroem_features():
    X, y, groups = cohort()
    new = cohort(seed=1)[0]
    probe = KernelRidgeProbe(widths=[2.0], alphas=[1e-2], seed=3, most_exact=100, landmarks=40).fit(X, y, groups)
    inside, outside = standardised(X, new)
    Z = choose_landmarks(inside, 40, seed=3)
    theirs = Nystroem(kernel="rbf", gamma=0.5 / probe.width_**2, n_components=40).fit(Z)  # the same 40, shuffled
    ridge = Ridge(alpha=1e-2, fit_intercept=False).fit(theirs.transform(inside), y - y.mean())
    expected = ridge.predict(theirs.transform(outside)) + y.mean()
    np.testing.assert_allclose(probe.predict(new), expected, rtol=1e-4)
    assert probe.note_.endswith("40 Nystroem features for 160 scans")


def test_knn_is_scikit_learns_with_the_k_of_its_grid_search():
    X, y, groups = cohort()
    new = cohort(seed=1)[0]
    probe = KnnProbe(seed=3).fit(X, y, groups)
    inside, outside = standardised(X, new)
    search = GridSearchCV(
        KNeighborsRegressor(), {"n_neighbors": [5, 10, 20, 40, 80]}, scoring="r2", cv=grouped_folds(groups, 3)
    ).fit(inside, y)
    assert probe.k_ == search.best_params_["n_neighbors"]
    np.testing.assert_allclose(probe.scores_, search.cv_results_["mean_test_score"], rtol=1e-10)
    np.testing.assert_allclose(probe.predict(new), search.predict(outside), rtol=1e-10)


def test_the_gaussian_process_probe_is_scikit_learns_on_standardised_features():
    X, y, groups = cohort()
    new = cohort(seed=1)[0]
    probe = fit_age_probe("gaussian_process", X, y, groups, seed=0)
    inside, outside = standardised(X, new)
    process = probe.probe.process_
    kernel = ConstantKernel(process.signal_variance_) * RBF(process.width_) + WhiteKernel(process.noise_variance_)
    theirs = GaussianProcessRegressor(kernel, alpha=0, optimizer=None).fit(inside, y - y.mean())
    mean, sd = theirs.predict(outside, return_std=True)
    np.testing.assert_allclose(probe.predict(new), mean + y.mean(), rtol=1e-4)
    np.testing.assert_allclose(probe.predict_sd(new), sd, rtol=1e-4)


@EVERY_PROBE
def test_out_of_fold_ages_come_from_other_people_only(name):
    X, y, groups = cohort(n=80)
    found = out_of_fold_years(name, X, y, groups, seed=5)
    changed = y + np.where(groups == "p007", 1000.0, 0.0)
    other = out_of_fold_years(name, X, changed, groups, seed=5)
    mine = groups == "p007"
    np.testing.assert_array_equal(other.years[mine], found.years[mine])  # own ages are of no consequence
    assert len(set(found.fold[mine])) == 1
    elsewhere = found.fold != found.fold[mine][0]
    assert (other.years[elsewhere] != found.years[elsewhere]).any()
    inside = found.fold != 2
    again = fit_age_probe(name, X[inside], y[inside], groups[inside], 5).predict(X[~inside])
    np.testing.assert_allclose(found.years[~inside], again)
    assert sorted(set(found.fold)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["kernel_ridge", "gaussian_process", "knn"])
def test_constant_and_rescaled_columns_change_nothing(name):
    X, y, groups = cohort(n=80)
    new = cohort(n=20, seed=1)[0]
    expected = fit_age_probe(name, X, y, groups, 0).predict(new)

    def widened(values):
        constant = np.full((len(values), 1), 0.1, dtype=np.float32)
        return np.hstack([constant, values * 1000 + 5, 0 * constant])

    np.testing.assert_allclose(fit_age_probe(name, widened(X), y, groups, 0).predict(widened(new)), expected, rtol=1e-4)


@EVERY_PROBE
def test_what_no_probe_can_learn_from_is_refused_with_a_reason(name):
    X, y, groups = cohort(n=40)
    broken = np.where(np.arange(X.size).reshape(X.shape) == 7, np.nan, X)
    for arguments, message in (
        ((broken, y, groups), "1 of 40 rows"),
        ((X, np.where(y == y[3], np.inf, y), groups), "1 of 40 ages are not finite"),
        ((X[:, 0], y, groups), "expected features of shape"),
        ((X[:9], y, groups), "expected features of shape"),
        ((X, y, groups[:9]), "one age and one person a scan"),
        ((X, y, np.repeat(["a", "b"], 20)), "expected at least 4 people to fit on, found 2"),
    ):
        with pytest.raises(DataError, match=message):
            fit_age_probe(name, *arguments, seed=0)
    probe = fit_age_probe(name, X, y, groups, seed=0)
    with pytest.raises(DataError, match="1 of 40 rows"):
        probe.predict(broken)
    if name != "ridge":
        with pytest.raises(DataError, match="fitted on 6 features, found 4"):
            probe.predict(X[:, :4])
        with pytest.raises(DataError, match="all 6 features are constant over the 40 fitted scans"):
            fit_age_probe(name, np.ones_like(X), y, groups, seed=0)


def test_an_unknown_probe_is_named_with_those_there_are():
    with pytest.raises(
        ConfigError, match="'forest' is no age probe; known: ridge, kernel_ridge, gaussian_process, knn"
    ):
        fit_age_probe("forest", *cohort(n=40), seed=0)


@EVERY_PROBE
def test_few_people_and_many_features_are_fitted_all_the_same(name):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(9, 30)), rng.uniform(20, 80, 9)
    years = fit_age_probe(name, X, y, np.arange(9).astype(str), 0).predict(rng.normal(size=(4, 30)))
    assert np.isfinite(years).all()
    assert (np.abs(years - 50) < 60).all()


@pytest.fixture(scope="module")
def ixi():
    """(table without splits, features) of the IXI people with thickness of 68 regions."""
    sheet = pd.read_csv(f"{REAL}/ixi_tables/IXI_demographics_min.csv")
    values = pd.read_csv(f"{REAL}/ixi_tables/pcn_IXI_aparc_thickness.csv")
    regions = [name for name in values if name.endswith("_thickness") and "Mean" not in name]
    sheet["participant_id"] = [f"IXI{number:03d}" for number in sheet["IXI_ID"]]
    values["participant_id"] = values["participant_id"].str.removeprefix("sub-")
    both = sheet.merge(values[["participant_id", *regions]], on="participant_id").dropna(subset=regions)
    both = both.rename(columns={"hospital": "site", "age": "age_years"})
    rows = both[["participant_id", "site", "age_years", "sex"]]
    table = finish_table(
        rows.assign(cohort="ixi", session_id="1", run="", split="train", path="table"), source="ixi"
    ).table
    keyed = both.set_index("participant_id")[regions].loc[table["participant_id"]]
    return table, Features("thickness", 0, table[KEY], keyed.to_numpy(dtype=np.float32))


@pytest.mark.real_data
@pytest.mark.skipif(not REAL, reason="BRAINAGE_REAL_DATA does not name the folder of real data")
@pytest.mark.parametrize("hospital", ["Guys", "HH", "IOP"])
def test_every_probe_reads_age_from_the_thickness_of_a_hospital_it_has_not_seen(ixi, hospital):
    table, features = ixi
    dealt = np.random.default_rng(0).choice(["train", "val", "test_internal"], len(table), p=[0.6, 0.2, 0.2])
    table = table.assign(split=np.where(table["site"] == hospital, "test_external", dealt))
    config = EvaluateConfig(bootstrap=200, age_probes=list(AGE_PROBES))
    results = evaluate_age(features, table, cohort="ixi", config=config, seed=0).results
    mean = results[results["run"] == "mean_predictor"].set_index("split")["estimate"]
    found = {}
    for row in results[(results["run"] == "thickness") & results["task"].isin(["age", "age_interval"])].to_dict(
        "records"
    ):
        parts = parts_of(row["note"])
        if "band" not in parts:
            found[row["split"], parts.get("probe", "ridge"), row["metric"]] = row["estimate"]
    for name in AGE_PROBES:
        for split in ("test_internal", "test_external"):
            mae, covered, width = (found[split, name, m] for m in ("mae_years", "coverage", "width_years"))
            print(f"{hospital:5s} {split:14s} {name:17s} MAE {mae:5.2f} coverage {covered:.3f} width {width:5.1f}")
            assert 6 < mae < min(12, mean[split])
            assert 0.75 < covered <= 1
            assert 20 < width < 60
