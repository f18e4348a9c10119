"""What is said of an arm of the diagnosis task: which pairs of people are compared, and how wide intervals are."""

from __future__ import annotations

import dataclasses
import zlib
from functools import partial

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from brainage.downstream.classifiers import cross_fit
from brainage.downstream.diagnosis import evaluate_diagnosis
from brainage.statistics import roc, roc_within
from brainage.statistics.bootstrap import bootstrap
from brainage.statistics.metrics import balanced_accuracy
from tests.downstream.diagnosed import cohort, unequal_sites
from tests.downstream.test_diagnosis import config_of, cross_fit_widen, pick


def within_by_hand(truth, scores, fold, value) -> float:
    """`value` of each fold, weighed by its pairs."""
    parts = [(truth[fold == k], scores[fold == k]) for k in np.unique(fold)]
    return float(np.average([value(*p) for p in parts], weights=[t.sum() * (1 - t).sum() for t, _ in parts]))


def test_held_out_sites_are_compared_within_and_so_is_the_gap_beside_them():
    readout, gaps = unequal_sites()
    config = config_of(diagnosis_by_site=True, predictors=["age_sex", "gap", "probe"])
    found = evaluate_diagnosis(readout, gaps, config=config, seed=0)
    frame = found.frames["diagnosis"].query("folds == 'site'")
    of = {name: rows.sort_values("participant_id") for name, rows in frame.groupby("predictor")}
    truth, fold = of["gap"]["truth"].to_numpy(), of["gap"]["fold"].to_numpy()
    for name in ("gap", "probe"):
        rows, where = of[name], {"predictor": name, "folds": "site"}
        area = within_by_hand(truth, rows["marker"].to_numpy(), fold, roc_auc_score)
        assert pick(found.results, **where)["estimate"] == pytest.approx(area)
        assert pick(found.results, metric="auc_delong", **where)["estimate"] == pytest.approx(area)
        called = (rows["score"] > rows["threshold"]).to_numpy().astype(int)
        accuracy = pick(found.results, metric="balanced_accuracy", **where)["estimate"]
        assert accuracy == pytest.approx(within_by_hand(truth, called, fold, balanced_accuracy_score))
    assert roc_auc_score(truth, of["gap"]["marker"]) != pytest.approx(area, abs=1e-3)
    precision = pick(found.results, metric="average_precision", predictor="probe", folds="site")
    assert f"chance {roc_within.chance_precision(truth, fold):.3g}; mean of folds by cases" in precision["note"]
    areas = roc_within.delong(truth, np.stack([of["gap"]["marker"], of["probe"]["marker"]]), fold)
    difference = pick(found.results, "diagnosis_paired", "auc_difference", contrast="probe-gap", folds="site")
    assert difference["estimate"] == pytest.approx(areas.auc[1] - areas.auc[0])
    assert "paired DeLong" in difference["note"]
    assert "over case-control pairs within folds" in difference["note"]
    assert "within folds" not in pick(found.results, predictor="probe")["note"]


def test_networks_of_folds_of_people_are_compared_within_them_and_so_is_what_they_are_held_against():
    readout, gaps = cohort(80, effect=1.0)

    def own_scale(pair, train, labels, test, seed):
        offset = (train[0] % 7) - 3.0  # each fold's network puts everybody higher or lower
        return expit(readout.features[test, 0].astype(float) + offset)

    found = evaluate_diagnosis(
        readout, gaps, config=config_of(predictors=["gap", "finetuned"]), seed=0, networks={"finetuned": own_scale}
    )
    frame = {name: rows.sort_values("participant_id") for name, rows in found.frames["diagnosis"].groupby("predictor")}
    truth, fold = frame["gap"]["truth"].to_numpy(), frame["gap"]["fold"].to_numpy()
    inside = {n: within_by_hand(truth, rows["marker"].to_numpy(), fold, roc_auc_score) for n, rows in frame.items()}
    pooled = {n: roc_auc_score(truth, rows["marker"]) for n, rows in frame.items()}
    assert pick(found.results, predictor="finetuned")["estimate"] == pytest.approx(inside["finetuned"])
    assert pick(found.results, predictor="gap")["estimate"] == pytest.approx(pooled["gap"])
    assert inside["gap"] != pytest.approx(pooled["gap"])
    difference = pick(found.results, "diagnosis_paired", "auc_difference", contrast="finetuned-gap")
    assert difference["estimate"] == pytest.approx(inside["finetuned"] - inside["gap"])


def test_all_intervals_of_a_fitted_predictor_are_widened_for_shared_training_people():
    readout, gaps = cohort(80, effect=0, gap_years=0)
    found = evaluate_diagnosis(readout, gaps, config=config_of(), seed=0)
    rows = found.frames["diagnosis"].query("predictor == 'probe'")
    truth, score = rows["truth"].to_numpy(), rows["score"].to_numpy()
    called = (score > rows["threshold"]).to_numpy().astype(int)
    metrics = {"balanced_accuracy": (balanced_accuracy, called), "brier": (roc.brier, score)}
    plain = bootstrap(
        {name: partial(metric, truth, values) for name, (metric, values) in metrics.items()},
        (rows["cohort"] + "/" + rows["participant_id"]).to_numpy(dtype=str),
        resamples=200,
        seed=[0, zlib.crc32(b"CN-AD")],
    )
    widen = cross_fit_widen(readout, rows)
    assert widen > 1.5
    for name, own in plain.items():
        row = pick(found.results, metric=name, predictor="probe")
        assert f"variance x {widen:.2f} for shared training people, taken to be the area's" in row["note"]
        for end in ("low", "high"):
            stretched = (logit(row[end]) - logit(own.estimate)) / (logit(getattr(own, end)) - logit(own.estimate))
            assert stretched == pytest.approx(np.sqrt(widen))
    assert "variance x" not in pick(found.results, metric="balanced_accuracy", predictor="gap")["note"]


def test_few_labels_give_their_own_share_as_threshold_and_prior():
    truth = (np.arange(100) % 4 == 0).astype(float)
    X = np.random.default_rng(1).normal(size=(100, 2))
    fold, used = np.arange(100) // 20, np.zeros(100, dtype=bool)
    used[np.r_[np.flatnonzero(truth == 1)[::3], np.flatnonzero(truth == 0)[::8]]] = True
    found = cross_fit(X, truth, fold, used, seed=0)
    assert found.threshold == truth[used].mean() != truth.mean()
    shifted = cross_fit(X, np.where(used, truth, 1 - truth), fold, used, seed=0)
    np.testing.assert_array_equal(found.probability, shifted.probability)  # no label beyond those given is looked at


@pytest.mark.parametrize(("seed", "told"), [(18, False), (4, True)])
def test_age_and_sex_tell_classes_apart_where_their_widened_interval_says_so(seed, told):
    readout, gaps = cohort(80, effect=0, seed=seed)
    older = readout.table["age_years"] + 4 * (readout.table["diagnosis"] == "AD").astype(float)
    readout = dataclasses.replace(readout, table=readout.table.assign(age_years=older))
    found = evaluate_diagnosis(readout, gaps, config=config_of(predictors=["age_sex", "probe"], bootstrap=20), seed=0)
    rows = found.frames["diagnosis"].query("predictor == 'age_sex'")
    area = roc.delong(rows["truth"].to_numpy(), rows["marker"].to_numpy())
    assert roc.delong_interval(float(area.auc[0]), float(area.covariance[0, 0])).low > 0.5  # taken as given it does
    assert (pick(found.results, metric="auc_delong", predictor="age_sex")["low"] > 0.5) == told
    assert ("and tell the classes apart" in pick(found.results, predictor="probe")["note"]) == told
