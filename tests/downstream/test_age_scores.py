"""Rows of age beyond the first probe: several probes, patients, sex, calibration, conformal intervals."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, pearsonr

from brainage.config import EvaluateConfig
from brainage.downstream.age import evaluate_age, mean_age, paired_mae_difference, pool_seeds, score_predictions
from brainage.downstream.age_intervals import add_intervals
from brainage.downstream.age_probes import AGE_PROBES, fit_age_probe
from brainage.downstream.age_scores import FURTHER, HEALTHY, HIGH, LOW
from brainage.downstream.features import join
from brainage.downstream.predictions import predictions_frame
from brainage.downstream.probes import people
from brainage.downstream.results import parts_of
from brainage.errors import ConfigError, DataError, LeakageError

from .cohort import make_features, make_table

SPLITS = ("test_internal", "test_external")


def known(**changed):
    return {"cohort": "demo", "config": EvaluateConfig(bootstrap=20, **changed), "seed": 3}


def value(results, split, metric, task="age", column="estimate", run="exp", **parts):
    rows = results[(results[["run", "split", "task", "metric"]] == [run, split, task, metric]).all(axis=1)]
    (row,) = [row for row in rows.to_dict("records") if parts_of(row["note"]) == parts]
    return row[column]


def with_patients(table, share=3):
    """Every `share`-th person has AD at one of two scans, one in ten no diagnosis, the others are CN."""
    codes = pd.factorize(people(table))[0]
    diagnosis = np.where(codes % share == 0, "AD", "CN").astype(object)
    diagnosis[(codes % share == 0) & table["session_id"].eq("ses1")] = "CN"
    diagnosis[codes % 10 == 1] = pd.NA
    return table.assign(diagnosis=pd.array(diagnosis, dtype="string"))


def test_further_probes_add_rows_of_their_own_and_leave_those_of_the_first_as_they_are():
    table = make_table()
    features = make_features(table)
    alone = evaluate_age(features, table, **known()).results
    found = evaluate_age(features, table, **known(age_probes=list(AGE_PROBES)))
    others = found.results["note"].map(lambda note: parts_of(note).get("probe", "ridge") != "ridge")
    pd.testing.assert_frame_equal(found.results[~others].reset_index(drop=True), alone)
    fitted = table[table["split"].isin(["train", "val"])]
    for name in list(AGE_PROBES)[1:]:
        probe = fit_age_probe(name, join(features, fitted), fitted["age_years"].to_numpy(), people(fitted), 3)
        for split in SPLITS:
            scored = table[table["split"] == split]
            expected = np.abs(probe.predict(join(features, scored)) - scored["age_years"]).mean()
            assert value(found.results, split, "mae_years", probe=name) == pytest.approx(expected)
            note = value(found.results, split, "mae_years", column="note", probe=name)
            assert note.endswith(f" on 70 scans, {probe.note}")
        assert FURTHER + name in found.predictions


def test_another_first_probe_gives_the_predictions_and_no_check_of_ridge():
    table = make_table()
    found = evaluate_age(make_features(table), table, **known(age_probes=["knn", "ridge"]))
    assert not (found.results["task"] == "age_standardised").any()
    assert (
        value(found.results, "test_internal", "mae_years", column="note").split("; ")[2].startswith("k-NN on 70 scans")
    )
    assert np.isfinite(value(found.results, "test_internal", "mae_years", probe="ridge"))
    with pytest.raises(ConfigError, match="age_probes is empty"):
        evaluate_age(make_features(table), table, **known(age_probes=[]))
    with pytest.raises(ConfigError, match="'forest' is no age probe"):
        evaluate_age(make_features(table), table, **known(age_probes=["ridge", "forest"]))


def test_patients_are_predicted_but_neither_fitted_on_nor_scored():
    table = with_patients(make_table(val=30, scans=2))
    features = make_features(table)
    found = evaluate_age(features, table, **known())
    ill = set(people(table[table["diagnosis"].eq("AD").fillna(False)]))
    unknown = set(people(table[table["diagnosis"].isna()]))
    well = table[[person not in ill | unknown for person in people(table)]]
    for split in SPLITS:
        expected = evaluate_age(features, well, **known()).results
        for metric in ("mae_years", "bias_years", "gap_age_r"):
            assert value(found.results, split, metric) == pytest.approx(value(expected, split, metric))
        assert value(found.results, split, "coverage", "age_interval", probe="ridge", coverage="0.9") == pytest.approx(
            value(expected, split, "coverage", "age_interval", probe="ridge", coverage="0.9")
        )
        everybody = len(set(people(table[table["split"] == split])))
        counted = len(set(people(well[well["split"] == split])))
        assert value(found.results, split, "mae_years", column="n") == counted
        note = value(found.results, split, "mae_years", column="note")
        assert f"healthy people only: {everybody - counted} of {everybody} people with another or no diagnosis" in note
        assert "scans of healthy people (" in note
    assert len(found.predictions) == (table["split"].isin(SPLITS)).sum()
    assert found.predictions.loc[~found.predictions[HEALTHY], "predicted_age_years"].notna().all()
    assert mean_age(table, known()["config"]) == pytest.approx(mean_age(well, known()["config"]))


def test_nobody_healthy_is_said_and_never_scored():
    table = make_table()
    ill = table.assign(diagnosis=pd.array(np.where(table["split"] == "test_external", "AD", "CN"), dtype="string"))
    results = evaluate_age(make_features(table), ill, **known()).results
    assert "20 of 20 people with another or no diagnosis" in value(results, "test_external", "mae_years", column="note")
    assert np.isnan(value(results, "test_external", "mae_years"))
    patients = table.assign(diagnosis=pd.array(np.where(table["split"] == "train", "AD", "CN"), dtype="string"))
    with pytest.raises(DataError, match="no healthy person in train to fit an age probe on: 60 scans"):
        evaluate_age(make_features(table), patients, **known(fit_splits=["train"]))


def test_a_paired_difference_leaves_patients_out_too():
    table = with_patients(make_table())
    a, b = (evaluate_age(make_features(table, noise_years=noise), table, **known()) for noise in (3.0, 8.0))
    results = paired_mae_difference(a.predictions, b.predictions, **known())
    for split in SPLITS:
        maes = [value(found.results, split, "mae_years") for found in (a, b)]
        assert value(results, split, "mae_difference_years", run="exp - exp") == pytest.approx(maes[0] - maes[1])


def test_sexes_and_the_calibration_are_those_of_the_predictions():
    table = make_table()
    found = evaluate_age(make_features(table), table, **known())
    for split in SPLITS:
        rows = found.predictions[found.predictions["split"] == split]
        gap = rows["predicted_age_years"] - rows["age_years"]
        assert value(found.results, split, "gap_age_r") == pytest.approx(pearsonr(rows["age_years"], gap).statistic)
        assert value(found.results, split, "bias_years") == pytest.approx(gap.mean())
        slope = np.polyfit(rows["age_years"], rows["predicted_age_years"], 1)[0]
        assert value(found.results, split, "age_slope") == pytest.approx(slope)
        for sex in "FM":
            expected = gap[rows["sex"] == sex].abs().mean()
            assert value(found.results, split, "mae_years", "age_by_sex", sex=sex) == pytest.approx(expected)


def test_intervals_are_calibrated_on_the_held_back_people_by_a_probe_that_never_saw_them():
    table = make_table(val=30, scans=2)
    features = make_features(table)
    found = evaluate_age(features, table, **known())
    train = table[table["split"] == "train"]
    probe = fit_age_probe("ridge", join(features, train), train["age_years"].to_numpy(), people(train), 3)
    lows, highs = (found.predictions[side + "ridge"] for side in (LOW, HIGH))
    scored = table[table["split"].isin(SPLITS)]
    order = found.predictions["participant_id"] + found.predictions["session_id"]
    assert order.tolist() == (scored["participant_id"] + scored["session_id"]).tolist()
    np.testing.assert_allclose((lows + highs) / 2, probe.predict(join(features, scored)))
    val = table[table["split"] == "val"]
    errors = np.abs(probe.predict(join(features, val)) - val["age_years"].to_numpy())
    radius = ((highs - lows) / 2).to_numpy()
    np.testing.assert_allclose(radius, radius[0])
    assert np.isclose(errors, radius[0]).sum() == 1  # the error of one scan of val
    for split in SPLITS:
        here = (found.predictions["split"] == split).to_numpy()
        ages = found.predictions["age_years"]
        inside = ((lows <= ages) & (ages <= highs))[here].mean()
        parts = {"probe": "ridge", "coverage": "0.9"}
        assert value(found.results, split, "coverage", "age_interval", **parts) == pytest.approx(inside)
        width = value(found.results, split, "width_years", "age_interval", **parts)
        assert width == pytest.approx(2 * radius[0])
        note = value(found.results, split, "coverage", "age_interval", column="note", **parts)
        assert "30 people, a random scan each, around a probe fitted on 120 scans of others" in note
    bands = [parts_of(note).get("band") for note in found.results.query("task == 'age_interval'")["note"]]
    assert {"20-29", "70-79"} <= set(bands)


def test_a_gaussian_process_has_intervals_as_wide_as_its_spread():
    table = make_table(val=30)
    found = evaluate_age(make_features(table), table, **known(age_probes=["gaussian_process"], fit_splits=["train"]))
    width = found.predictions[HIGH + "gaussian_process"] - found.predictions[LOW + "gaussian_process"]
    assert width.std() > 0
    parts = {"probe": "gaussian_process", "coverage": "0.9"}
    note = value(found.results, "test_external", "coverage", "age_interval", column="note", **parts)
    assert note.endswith("split conformal: errors over predicted sd of 30 people, a random scan each")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"correct_on": []}, "0 healthy people in no split"),
        ({"conformal_coverage": 0.95}, "10 healthy people in val (evaluate.correct_on) to calibrate on, expected 19"),
        ({"fit_splits": ["val"]}, "0 people of evaluate.fit_splits are not in val, expected 4 to fit on"),
    ],
)
def test_without_people_to_calibrate_on_there_is_a_reason_and_no_interval(changed, reason):
    table = make_table()
    results = evaluate_age(make_features(table), table, **known(**changed)).results
    rows = results[results["task"] == "age_interval"]
    assert len(rows) == 2
    assert rows["estimate"].isna().all()
    assert rows["note"].str.contains(f"not computed: {reason}", regex=False).all()


def test_people_who_are_scored_do_not_calibrate():
    table = make_table()
    with pytest.raises(LeakageError, match="24 people of the calibration are scored too"):
        evaluate_age(make_features(table), table, **known(correct_on=["test_internal"]))


def test_seeds_are_pooled_for_every_probe_and_interval():
    table = make_table(val=20)
    config = known(age_probes=["ridge", "knn"])
    each = [evaluate_age(make_features(table, seed=seed), table, **config) for seed in (0, 1)]
    pooled = pool_seeds([one.predictions for one in each], **config)
    for metric, task, parts in (
        ("mae_years", "age", {"probe": "knn"}),
        ("coverage", "age_interval", {"probe": "knn", "coverage": "0.9"}),
        ("width_years", "age_interval", {"probe": "ridge", "coverage": "0.9"}),
    ):
        expected = np.mean([value(one.results, "test_external", metric, task, **parts) for one in each])
        assert value(pooled, "test_external", metric, task, **parts) == pytest.approx(expected)
        assert "seeds 0, 1, sd over seeds" in value(pooled, "test_external", metric, task, column="note", **parts)


def test_a_person_with_many_scans_counts_once_in_the_coverage():
    table = make_table(scans=3)
    predictions = evaluate_age(make_features(table), table, **known()).predictions
    few = predictions[(predictions["session_id"] == "ses0") | (predictions["participant_id"] < "int012")].copy()
    few[LOW + "ridge"] = few["age_years"] - 1
    few[HIGH + "ridge"] = few["age_years"] + np.where(few["session_id"] == "ses1", -0.5, 1)
    results = score_predictions(few, **known())
    many = few["split"].eq("test_internal") & (few["participant_id"] < "int012")
    assert many.sum() == 36
    found = value(results, "test_internal", "coverage", "age_interval", probe="ridge", coverage="0.9")
    assert found == pytest.approx((12 * 2 / 3 + 12) / 24)


@pytest.mark.slow
def test_intervals_of_age_hold_nine_people_in_ten_within_the_binomial_bounds():
    """One person of each of 150 cohorts, seeds 0 to 149: P = ceil(0.9 x 41) / 41 = 37 / 41, whatever the probe."""
    cohorts, held = 150, {"ridge": 0, "gaussian_process": 0}
    for seed in range(cohorts):
        table = make_table(train=50, val=40, internal=1, external=0, seed=seed)
        features = make_features(table, seed=seed)
        train, person = (table[table["split"] == split] for split in ("train", "test_internal"))
        X, y, asked = join(features, train), train["age_years"].to_numpy(), join(features, person)
        probes = {name: fit_age_probe(name, X, y, people(train), seed) for name in held}
        found = predictions_frame(person, np.zeros(1), model="exp", seed=seed)
        add_intervals(found, probes, features, table, train, asked, config=EvaluateConfig(), seed=seed)
        for name in held:
            held[name] += int(found[LOW + name][0] <= found["age_years"][0] <= found[HIGH + name][0])
    low, high = binom.interval(0.999, cohorts, 37 / 41)
    for name, count in held.items():
        assert low <= count <= high, name
