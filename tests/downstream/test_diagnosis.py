"""The diagnosis task: who is compared, that no score has seen its label, and what is said where there is no number."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from brainage.config import EvaluateConfig
from brainage.downstream.classifiers import PENALTIES, cross_fit, fit_logistic_path
from brainage.downstream.diagnosis import DIAGNOSIS_COLUMNS, evaluate_diagnosis
from brainage.downstream.diagnosis_folds import Pair, draw_pair, labelled, people_folds, site_folds
from brainage.downstream.results import parts_of
from brainage.errors import ConfigError, DataError, TrainingStopped
from brainage.statistics import roc
from tests.downstream.diagnosed import cohort, readout_of, visits_of


def config_of(**changes) -> EvaluateConfig:
    return EvaluateConfig(**{"pairs": ["CN-AD"], "bootstrap": 200, **changes})


def pick(results: pd.DataFrame, task: str = "diagnosis", metric: str = "auc", **parts: str) -> pd.Series:
    """The one row of these parts, and of no others."""
    wanted = {"pair": "CN-AD", **parts}
    rows = [row for _, row in results.iterrows() if (row["task"], row["metric"]) == (task, metric)]
    (row,) = [row for row in rows if parts_of(row["note"]) == wanted]
    return row


def binary_sample(n: int = 60, width: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, width)) * [1, 10, 0.1, 1][:width] + 5
    return X, (rng.random(n) < expit(X[:, 0] - 5.5)).astype(float)


def test_a_path_is_scikit_learns_regression_on_standardised_features():
    X, y = binary_sample()
    for C, model in zip(PENALTIES, fit_logistic_path(X, y, PENALTIES), strict=True):
        theirs = LogisticRegression(C=C, tol=1e-10).fit(StandardScaler().fit_transform(X), y)
        assert model.converged
        np.testing.assert_allclose(model.coef * X.std(axis=0), theirs.coef_[0], atol=1e-4)
        centred = model.intercept + X.mean(axis=0) @ model.coef
        assert centred == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_a_path_of_more_features_than_people_and_of_constant_features_is_scikit_learns_too():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(20, 50)), (np.arange(20) % 2).astype(float)
    X[:, 7] = 3.3
    (model,) = fit_logistic_path(X.astype(np.float32), y, [0.1])
    theirs = LogisticRegression(C=0.1, tol=1e-10).fit(StandardScaler().fit_transform(X), y)
    np.testing.assert_allclose(model.coef * X.std(axis=0), theirs.coef_[0], atol=1e-4)
    assert model.coef[7] == 0


@pytest.mark.parametrize(("n", "width"), [(60, 4), (40, 60)])
def test_cross_fitting_is_the_nested_search_written_out(n, width):
    rng = np.random.default_rng(2)
    X = rng.normal(size=(n, width))
    y = (rng.random(n) < expit(X[:, 0] - 0.5)).astype(float)
    fold, used = np.arange(n) % 5, rng.random(n) < 0.9
    found = cross_fit(X, y, fold, used, seed=0)
    for k in range(5):
        train, losses = used & (fold != k), np.zeros(len(PENALTIES))
        for j in set(range(5)) - {k}:
            inside, judged = train & (fold != j), train & (fold == j)
            for index, C in enumerate(PENALTIES):
                model = make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-8)).fit(X[inside], y[inside])
                p = model.predict_proba(X[judged])[:, 1]
                losses[index] -= (y[judged] * np.log(p) + (1 - y[judged]) * np.log(1 - p)).sum()
        best = LogisticRegression(C=PENALTIES[int(np.argmin(losses))], tol=1e-10)
        model = make_pipeline(StandardScaler(), best).fit(X[train], y[train])
        log_odds = model.decision_function(X[fold == k]) - logit(y[train].mean()) + logit(y[used].mean())
        np.testing.assert_allclose(found.probability[fold == k], expit(log_odds), atol=2e-4)
        known = model.decision_function(X[train])
        marker = (model.decision_function(X[fold == k]) - known.mean()) / known.std()
        np.testing.assert_allclose(found.marker[fold == k], marker, atol=5e-3)


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_nobodys_score_depends_on_a_label_of_their_own_fold(folds):
    X, y = binary_sample(seed=3)
    fold = np.arange(len(y)) % folds
    before = cross_fit(X, y, fold, np.ones(len(y), dtype=bool), seed=0)
    here = np.flatnonzero(fold == 0)
    changed = y.copy()
    changed[here] = np.roll(y[here], 1)  # as many of each class, other people
    assert (changed != y).any()
    after = cross_fit(X, changed, fold, np.ones(len(y), dtype=bool), seed=0)
    np.testing.assert_array_equal(before.probability[here], after.probability[here])
    assert (before.probability[fold == 1] != after.probability[fold == 1]).any()


def test_with_no_signal_the_variance_is_doubled_and_with_a_strong_one_left_alone():
    rng = np.random.default_rng(4)
    y, fold, used = (np.arange(200) % 2).astype(float), np.arange(200) // 2 % 5, np.ones(200, dtype=bool)
    noise = rng.normal(size=(200, 20))
    assert cross_fit(noise, y, fold, used, 0).widen > 1.75
    assert cross_fit(noise + 1.5 * y[:, None], y, fold, used, 0).widen < 1.1


def test_a_person_counts_once_by_the_first_visit_with_either_class():
    table = visits_of(
        [
            ("converts", "2", 72, "AD"), ("converts", "1", 70, "CN"), ("late", "1", 70, "MCI"), ("late", "2", 73, "AD"),
            ("twice", "1", 71, "CN"), ("twice", "2", 71, "CN"), ("unclear", "1", 70, "CN"), ("unclear", "2", 70, "AD"),
            ("unscored", "1", 70, "AD"), ("nothing", "1", 70, None),
        ]
    )  # fmt: skip
    readout = readout_of(table)
    readout = dataclasses.replace(readout, score=(table["participant_id"] != "unscored").to_numpy())
    pair = draw_pair(readout, "CN-AD")
    chosen = table.iloc[pair.rows]
    assert list(zip(chosen["participant_id"], chosen["session_id"], pair.truth, strict=True)) == [
        ("converts", "1", 0), ("late", "2", 1), ("twice", "1", 0),
    ]  # fmt: skip
    assert "1 people held both classes over time and count as what they first were" in pair.note
    assert "1 people left out: both classes at one visit" in pair.note
    assert pair.reason.startswith("fewer than 5 CN and fewer than 5 AD")


def test_mci_of_unknown_outcome_is_left_out_and_counted():
    rows = [
        ("a", "1", 70, "MCI"),
        ("a", "2", 71, "MCI"),
        ("b", "1", 70, "MCI"),
        ("c", "1", 70, "MCI"),
        ("d", "1", 70, "CN"),
    ]
    readout = readout_of(visits_of(rows, mci_outcome=["unknown", "stable", "progressive", "unknown", None]))
    pair = draw_pair(readout, "sMCI-pMCI")
    assert readout.table["participant_id"].iloc[pair.rows].tolist() == ["a", "b"]
    assert pair.truth.tolist() == [0, 1]
    assert "1 people with MCI of unknown outcome left out" in pair.note


@pytest.mark.parametrize("name", ["CN", "CN-CN", "CN-FTD", "CN AD"])
def test_an_unknown_pair_or_predictor_is_refused(name):
    readout, gaps = cohort(20)
    with pytest.raises(ConfigError, match="expected two of CN, MCI, AD, sMCI, pMCI"):
        evaluate_diagnosis(readout, gaps, config=config_of(pairs=[name]), seed=0)
    with pytest.raises(ConfigError, match=f"evaluate.predictors holds '{name}'"):
        evaluate_diagnosis(readout, gaps, config=config_of(predictors=[name]), seed=0)
    with pytest.raises(ConfigError, match=r"label_shares holds 1\.5"):
        evaluate_diagnosis(readout, gaps, config=config_of(label_shares=[1.5]), seed=0)


def test_folds_hold_each_class_evenly_and_small_shares_of_labels_are_within_larger_ones():
    truth = (np.arange(103) % 4 == 0).astype(int)
    folds = people_folds(Pair("CN-AD", np.arange(103), truth, "", ""), 5, seed=1)
    counts = np.array([np.bincount(truth[folds.fold == k], minlength=2) for k in range(5)])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 1
    smaller = np.zeros(103, dtype=bool)
    for share in (0.05, 0.1, 0.5, 1.0):
        now = labelled(folds, truth, share)
        assert (now | smaller == now).all()
        assert [int(now[truth == c].sum()) for c in (0, 1)] == [
            int(np.ceil(share * (truth == c).sum())) for c in (0, 1)
        ]
        smaller = now
    assert smaller.all()


def test_the_planted_difference_is_found_and_the_frame_gives_the_numbers_again():
    readout, gaps = cohort(120, effect=1.5, gap_years=4.0)
    found = evaluate_diagnosis(readout, gaps, config=config_of(), seed=0)
    probe, gap = pick(found.results, predictor="probe"), pick(found.results, predictor="gap")
    assert probe["low"] < 0.856 < probe["high"]  # Phi(1.5 / sqrt 2)
    assert gap["low"] < 0.760 < gap["high"]  # Phi(1 / sqrt 2)
    assert "age and sex alone reach" in probe["note"]
    assert "60 CN and 60 AD" in probe["note"]
    rows = found.frames["diagnosis"]
    assert list(rows) == DIAGNOSIS_COLUMNS
    of = {name: part.reset_index(drop=True) for name, part in rows.groupby("predictor")}
    truth = of["probe"]["truth"]
    assert probe["estimate"] == pytest.approx(roc_auc_score(truth, of["probe"]["marker"]))
    assert gap["estimate"] == pytest.approx(roc_auc_score(of["gap"]["truth"], of["gap"]["marker"]))
    brier = pick(found.results, metric="brier", predictor="probe")["estimate"]
    assert brier == pytest.approx(((of["probe"]["score"] - truth) ** 2).mean())
    called = of["probe"]["score"] > of["probe"]["threshold"]
    accuracy = pick(found.results, metric="balanced_accuracy", predictor="probe")["estimate"]
    assert accuracy == pytest.approx((called[truth == 1].mean() + (~called)[truth == 0].mean()) / 2)
    areas = roc.delong(truth, np.stack([of["gap"]["marker"], of["probe"]["marker"]]))
    widen = cross_fit_widen(readout, rows)
    expected = roc.delong_test(areas, 1, 0, widen=widen)
    paired = {m: pick(found.results, "diagnosis_paired", m, contrast="probe-gap") for m in ("auc_difference", "p")}
    assert paired["p"]["estimate"] == pytest.approx(expected[1])
    assert paired["auc_difference"]["low"] == pytest.approx(expected[0].low)


def cross_fit_widen(readout, rows: pd.DataFrame) -> float:
    probe = rows[rows["predictor"] == "probe"]
    everybody = np.ones(len(probe), dtype=bool)
    y, fold = probe["truth"].to_numpy(dtype=float), probe["fold"].to_numpy()
    return cross_fit(readout.features, y, fold, everybody, 0).widen  # one scan each, in order of people


def test_the_order_of_the_rows_is_of_no_consequence():
    readout, gaps = cohort(50, scans=2)
    order = np.random.default_rng(5).permutation(len(gaps))
    shuffled = dataclasses.replace(
        readout, table=readout.table.iloc[order].reset_index(drop=True), features=readout.features[order],
        predicted_age_years=readout.predicted_age_years[order], correct=readout.correct[order],
    )  # fmt: skip
    a, b = (
        evaluate_diagnosis(r, g, config=config_of(), seed=1).results
        for r, g in ((readout, gaps), (shuffled, gaps[::-1]))
    )
    pd.testing.assert_frame_equal(a, b, rtol=1e-9)


def test_a_network_that_remembers_people_gains_nothing_from_their_other_scans():
    readout, gaps = cohort(60, effect=0, scans=3)
    persons, seen = readout.persons, []

    def remembers(pair, train, labels, test, seed):
        assert not set(persons[train]) & set(persons[test])
        seen.append((pair, len(train), seed))
        known = dict(zip(persons[train], labels, strict=True))
        return np.array([known.get(person, 0.5) for person in persons[test]], dtype=float)

    config = config_of(predictors=["finetuned", "scratch"], label_shares=[1.0, 0.5])
    found = evaluate_diagnosis(readout, gaps, config=config, seed=7, networks={"finetuned": remembers})
    assert pick(found.results, predictor="finetuned")["estimate"] == 0.5
    assert "no scratch network was trained" in pick(found.results, predictor="scratch")["note"]
    assert seen == [("CN-AD", 48, 7)] * 5 + [("CN-AD", 24, 7)] * 5
    for broken in (lambda *_: np.full(12, 1.2), lambda *_: np.zeros(3), lambda *_: np.full(12, np.nan)):
        with pytest.raises(DataError, match="finetuned network, pair CN-AD: expected 12 probabilities"):
            evaluate_diagnosis(readout, gaps, config=config, seed=7, networks={"finetuned": broken})


def test_a_network_that_answers_with_its_training_share_ranks_nobody_by_fold():
    readout, gaps = cohort(90, effect=0, sites=5)

    def share(pair, train, labels, test, seed):
        return np.full(len(test), labels.mean())

    config = config_of(predictors=["finetuned"], diagnosis_by_site=True)
    found = evaluate_diagnosis(readout, gaps, config=config, seed=0, networks={"finetuned": share})
    assert pick(found.results, predictor="finetuned", folds="site")["estimate"] == pytest.approx(0.5)


def test_a_network_whose_training_stops_is_a_row_and_the_others_are_scored():
    readout, gaps = cohort(60)

    def stops(*_):
        raise TrainingStopped("the loss is NaN")

    found = evaluate_diagnosis(
        readout, gaps, config=config_of(predictors=["gap", "finetuned"]), seed=0, networks={"finetuned": stops}
    )
    assert (
        "training of a finetuned network stopped: the loss is NaN" in pick(found.results, predictor="finetuned")["note"]
    )
    assert np.isfinite(pick(found.results, predictor="gap")["estimate"])


def test_low_data_curves_have_the_same_test_people_and_their_own_part():
    readout, gaps = cohort(100)
    found = evaluate_diagnosis(readout, gaps, config=config_of(label_shares=[0.2, 1.0, 0.02]), seed=0)
    few, all_ = pick(found.results, predictor="probe", labels="0.2"), pick(found.results, predictor="probe")
    assert few["n"] == all_["n"] == 100
    assert few["estimate"] != all_["estimate"]
    assert "training part holds both classes" in pick(found.results, predictor="probe", labels="0.02")["note"]
    folds = (
        found.frames["diagnosis"].query("predictor == 'probe'").pivot(index="participant_id", columns="labels")["fold"]
    )
    assert (folds[0.2] == folds[1.0]).all()
    contrasts = [parts_of(n) for n in found.results.query("task == 'diagnosis_paired'")["note"]]
    assert not any("labels" in parts for parts in contrasts)


def test_sites_are_held_out_whole_and_those_of_one_class_counted():
    readout, gaps = cohort(90, sites=5)
    truth = (readout.table["diagnosis"] == "AD").to_numpy()
    site = readout.table["site"].copy()
    site[truth & (site == "site0")] = "site1"
    site.iloc[:3] = None
    readout = dataclasses.replace(readout, table=readout.table.assign(site=site))
    found = evaluate_diagnosis(readout, gaps, config=config_of(diagnosis_by_site=True), seed=0)
    rows = found.frames["diagnosis"].query("folds == 'site' and predictor == 'probe'")
    assert (rows.groupby("site")["fold"].nunique() == 1).all()
    assert (rows.groupby("fold")["site"].nunique() == 1).all()
    row = pick(found.results, predictor="probe", folds="site")
    assert len(rows) == pick(found.results, metric="brier", predictor="probe", folds="site")["n"] == 87
    assert row["n"] == 87 - (rows["site"] == "site0").sum() == 78
    assert "over case-control pairs within folds, 9 people of folds of one class in none" in row["note"]
    assert "5 sites held out in turn, 1 of them with one class only; 3 people without a site left out" in row["note"]


def test_a_site_without_which_a_class_is_lost_is_not_scored():
    table = cohort(60, sites=3)[0].table
    readout, gaps = cohort(60, sites=3)
    site = table["site"].where(table["diagnosis"] == "CN", "site0")
    readout = dataclasses.replace(readout, table=table.assign(site=site))
    found = evaluate_diagnosis(readout, gaps, config=config_of(diagnosis_by_site=True), seed=0)
    row = pick(found.results, predictor="probe", folds="site")
    assert np.isnan(row["estimate"])
    assert "fewer than 5 people of a class in folds that hold both classes, as does their training part" in row["note"]


def test_many_sites_are_held_out_in_groups_of_about_equal_size():
    table = pd.DataFrame({"site": [f"s{i % 37}" for i in range(300)]}, dtype="string")
    folds = site_folds(Pair("CN-AD", np.arange(300), np.arange(300) % 2, "", ""), table)
    assert np.bincount(folds.fold).tolist() == pytest.approx([30] * 10, abs=6)
    assert "37 sites held out in turn in 10 groups" in folds.note


def test_one_site_has_no_site_held_out_but_its_folds_of_people():
    readout, gaps = cohort(40, sites=1)
    found = evaluate_diagnosis(readout, gaps, config=config_of(diagnosis_by_site=True), seed=0)
    assert np.isfinite(pick(found.results, predictor="probe")["estimate"])
    assert np.isnan(pick(found.results, predictor="probe", folds="site")["estimate"])


def test_a_class_of_two_people_or_no_diagnosis_at_all_is_a_row_with_its_reason():
    readout, gaps = cohort(40)
    ill = readout.table["diagnosis"] == "AD"
    few = readout.table["diagnosis"].mask(ill & (np.cumsum(ill.to_numpy(dtype=bool)) > 2), "MCI")
    cases = {
        "fewer than 5 AD: expected at least 5": few,
        "no scored scan has a diagnosis": pd.array([None] * 40, dtype="string"),
    }
    for reason, diagnosis in cases.items():
        table = readout.table.assign(diagnosis=diagnosis)
        found = evaluate_diagnosis(dataclasses.replace(readout, table=table), gaps, config=config_of(), seed=0)
        assert found.frames == {}
        assert len(found.results) == 3
        assert reason in pick(found.results, predictor="probe")["note"]
    outcome = evaluate_diagnosis(readout, gaps, config=config_of(pairs=["sMCI-pMCI"]), seed=0).results
    assert outcome["note"].str.contains("not computed: no scored scan has a mci_outcome").all()


def test_missing_gaps_are_a_row_and_the_others_are_computed():
    readout, gaps = cohort(40)
    for broken, reason in (
        (pd.DataFrame(), "no gaps corrected by beheshti"),
        (gaps[3:], "3 of 40 people have no gap"),
        (gaps.assign(gap_beheshti_years=np.nan), "40 of 40 people have no gap"),
    ):
        results = evaluate_diagnosis(readout, broken, config=config_of(), seed=0).results
        assert reason in pick(results, predictor="gap")["note"]
        assert np.isfinite(pick(results, predictor="probe")["estimate"])


def test_odd_features_and_one_sex_give_a_number_or_a_clear_error_and_never_a_warning():
    readout, gaps = cohort(40)
    nan = readout.features.copy()
    nan[5, 1] = np.nan
    with pytest.raises(DataError, match="1 vectors are not finite, first c/p0005"):
        evaluate_diagnosis(dataclasses.replace(readout, features=nan), gaps, config=config_of(), seed=0)
    constant = dataclasses.replace(
        readout, features=np.ones_like(readout.features), table=readout.table.assign(sex="F", age_years=70.0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = evaluate_diagnosis(constant, gaps, config=config_of(), seed=0).results
    assert pick(results, predictor="probe")["estimate"] == 0.5
    assert pick(results, predictor="age_sex")["estimate"] == 0.5
    slope = pick(results, metric="calibration_slope", predictor="probe")
    assert np.isnan(slope["estimate"])
    assert "hardly vary" in slope["note"]


def test_age_that_tells_the_classes_apart_is_said_and_unknown_sex_is_counted():
    readout, gaps = cohort(60, effect=0)
    older = readout.table["age_years"] + 20 * (readout.table["diagnosis"] == "AD").astype(float)
    sex = readout.table["sex"].mask(np.arange(60) < 4)
    readout = dataclasses.replace(readout, table=readout.table.assign(age_years=older, sex=sex))
    results = evaluate_diagnosis(readout, gaps, config=config_of(predictors=["probe", "age_sex"]), seed=0).results
    assert "and tell the classes apart" in pick(results, predictor="probe")["note"]
    assert "4 people of unknown sex" in pick(results, predictor="age_sex")["note"]
    assert pick(results, "diagnosis_paired", "auc_difference", contrast="age_sex-probe")["estimate"] > 0.2


def test_classes_told_apart_without_an_error_have_no_delong_interval_and_say_so():
    readout, gaps = cohort(40, gap_years=100.0)
    results = evaluate_diagnosis(readout, gaps, config=config_of(predictors=["gap", "probe"]), seed=0).results
    row = pick(results, metric="auc_delong", predictor="gap")
    assert row["estimate"] == 1.0
    assert np.isnan(row["low"])
    assert "no interval: DeLong's variance is 0" in row["note"]
