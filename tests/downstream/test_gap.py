"""The gap task: its rows and its frame, and what it says when there is little or nothing to work with."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from brainage.config import EvaluateConfig
from brainage.downstream.gap import GAP_COLUMNS, GAPS, NAMES, evaluate_gap, first_scans, groups_of
from brainage.downstream.gap_contrasts import CONTRASTS
from brainage.downstream.readout import NOBODY_DIAGNOSED, Readout, healthy
from brainage.downstream.results import parts_of
from brainage.errors import DataError
from brainage.statistics.bootstrap import bootstrap

CONFIG = EvaluateConfig(bootstrap=200)


def cohort(n=160, scans=2, sites=4, seed=0, spread_years=0.1):
    """People of CN, MCI (with outcomes) and AD, `scans` visits `spread_years` apart, in an order of no meaning."""
    rng = np.random.default_rng(seed)
    diagnosis = rng.choice(["CN", "MCI", "AD"], n, p=[0.5, 0.3, 0.2])
    person = pd.DataFrame({
        "cohort": "c", "participant_id": [f"p{i:03d}" for i in range(n)], "run": "1", "split": "test_external",
        "site": rng.choice([f"s{i}" for i in range(sites)], n), "sex": rng.choice(["F", "M"], n),
        "diagnosis": diagnosis, "age_years": rng.uniform(55, 90, n),
        "mci_outcome": np.where(diagnosis == "MCI", rng.choice(["stable", "progressive", "unknown"], n), None),
        "acceleration": rng.normal(0, 2, n) + 6 * (diagnosis == "AD") + 3 * (diagnosis == "MCI"),
    })  # fmt: skip
    visits = [
        person.assign(session_id=str(k), visit_years=spread_years * k, age_years=person["age_years"] + spread_years * k)
        for k in range(scans)
    ]
    table = pd.concat(visits).sample(frac=1, random_state=seed).reset_index(drop=True)
    return table.astype(dict.fromkeys(["site", "sex", "diagnosis", "mci_outcome"], "string"))


def readout(table: pd.DataFrame, correct=None, score=None, seed=0) -> Readout:
    rng = np.random.default_rng(seed + 50)
    n = len(table)
    predicted = 18 + 0.75 * (table["age_years"] + table["acceleration"]).to_numpy() + rng.normal(0, 2, n)
    correct = healthy(table) if correct is None else correct
    score = np.ones(n, dtype=bool) if score is None else score
    return Readout("exp", 3, "c", table, np.zeros((n, 2), np.float32), predicted, correct, score, "ridge on 9 scans")


def row(results: pd.DataFrame, task: str, metric: str, **parts: str) -> pd.Series:
    rows = results[(results["task"] == task) & (results["metric"] == metric)]
    rows = rows[[parts_of(note) == parts for note in rows["note"]]]
    assert len(rows) == 1, f"{len(rows)} rows of {task}/{metric}/{parts}"
    return rows.iloc[0]


@pytest.fixture(scope="module")
def whole():
    given = readout(cohort())
    return given, evaluate_gap(given, config=CONFIG, seed=1)


def test_the_frame_has_a_row_for_every_scored_scan_with_raw_and_corrected_gaps(whole):
    given, found = whole
    gaps = found.frames["gaps"]
    assert list(gaps.columns) == GAP_COLUMNS
    assert len(gaps) == len(given.table)
    np.testing.assert_allclose(gaps["gap_none_years"], given.gap_years)
    assert np.isfinite(gaps[GAPS]).all().all()
    assert ((gaps["corrected_by"] >= 0) == gaps["healthy"]).all()
    assert gaps.groupby("participant_id")["corrected_by"].nunique().max() == 1
    assert set(gaps["model"]) == {"exp"}
    assert set(gaps["seed"]) == {3}


def test_every_group_has_raw_and_corrected_numbers_over_first_scans(whole):
    _, found = whole
    gaps = found.frames["gaps"]
    first = gaps[gaps["session_id"] == "0"]
    groups = {
        "CN": first["diagnosis"] == "CN", "MCI": first["diagnosis"] == "MCI", "AD": first["diagnosis"] == "AD",
        "sMCI": first["mci_outcome"] == "stable", "pMCI": first["mci_outcome"] == "progressive",
    }  # fmt: skip
    for group, here in groups.items():
        for name in NAMES:
            gap, age = first.loc[here.fillna(False), f"gap_{name}_years"], first.loc[here.fillna(False), ["age_years"]]
            expected = {
                "mean_years": gap.mean(), "sd_years": gap.std(), "mae_years": gap.abs().mean(),
                "age_slope": LinearRegression().fit(age, gap).coef_[0],
            }  # fmt: skip
            for metric, value in expected.items():
                one = row(found.results, "gap", metric, group=group, correction=name)
                assert one["estimate"] == pytest.approx(value)
                assert one["low"] < value < one["high"]
                assert one["n"] == len(gap)
                assert ("inflated" in one["note"]) == (metric == "mae_years" and name != "none")
                assert ("interval includes the correction's own error" in one["note"]) == (name != "none")


def test_the_intervals_of_a_raw_gap_are_those_of_the_bootstrap_written_out(whole):
    _, found = whole
    part = first_scans(found.frames["gaps"])[0].query("diagnosis == 'AD'")
    gap, age = part["gap_none_years"].to_numpy(), part["age_years"].to_numpy()

    def repeated(metric):
        return lambda weights: np.array([metric(np.repeat(np.arange(len(gap)), w.astype(int))) for w in weights])

    statistics = {
        "mean_years": repeated(lambda rows: gap[rows].mean()),
        "sd_years": repeated(lambda rows: gap[rows].std() * np.sqrt(len(gap) / (len(gap) - 1))),
        "age_slope": repeated(lambda rows: np.polyfit(age[rows], gap[rows], 1)[0]),
        "mae_years": repeated(lambda rows: np.abs(gap[rows]).mean()),
    }
    persons = (part["cohort"] + "/" + part["participant_id"]).to_numpy(dtype=str)
    for metric, expected in bootstrap(statistics, persons, resamples=200, seed=[1, 4]).items():
        one = row(found.results, "gap", metric, group="AD", correction="none")
        assert tuple(one[["estimate", "low", "high"]]) == pytest.approx(tuple(expected))


def test_contrasts_find_the_planted_differences_and_are_corrected_over_each_other(whole):
    _, found = whole
    assert row(found.results, "gap_contrast", "difference_years", contrast="AD-CN", correction="cole")["low"] > 3
    for name in NAMES:
        rows = [(f"{a}-{b}", name) for a, b in CONTRASTS]
        p = [row(found.results, "gap_contrast", "p", contrast=c, correction=k)["estimate"] for c, k in rows]
        p_holm = [row(found.results, "gap_contrast", "p_holm", contrast=c, correction=k)["estimate"] for c, k in rows]
        assert min(p_holm) == pytest.approx(4 * min(p))
        assert (np.array(p_holm) >= p).all()
    raw, corrected = (
        row(found.results, "gap_contrast", "difference_years", contrast="AD-CN", correction=name)["estimate"]
        for name in ("none", "beheshti")
    )
    assert corrected == pytest.approx(raw, abs=0.15)  # a line of age goes into the adjustment
    note = row(found.results, "gap_contrast", "hedges_g", contrast="MCI-CN", correction="none")["note"]
    assert "4 of 4 sites hold both groups" in note


def test_two_scans_within_90_days_give_the_error_of_one(whole):
    _, found = whole
    sd = row(found.results, "gap_repeat", "sd_years", correction="none")
    assert sd["low"] < 2 < sd["high"]  # the planted noise
    assert sd["n"] == 160
    icc = row(found.results, "gap_repeat", "icc", correction="beheshti")["estimate"]
    assert 0.4 < icc < row(found.results, "gap_repeat", "icc", correction="none")["estimate"]


def test_a_year_apart_is_no_repeat_but_two_runs_of_one_session_are():
    apart = readout(cohort(scans=2, spread_years=1.0))
    results = evaluate_gap(apart, config=CONFIG, seed=1).results
    assert row(results, "gap_repeat", "icc")["note"].startswith("not computed: 0 people were scanned twice")
    table = cohort(scans=2, spread_years=0.0)
    table = table.assign(run=table["session_id"], session_id="1", visit_years=np.nan)
    results = evaluate_gap(readout(table), config=CONFIG, seed=1).results
    assert row(results, "gap_repeat", "icc", correction="none")["n"] == 160


@pytest.mark.parametrize(
    ("session", "years", "repeats"),
    [
        (None, (0.0, 2.0), False), (None, (0.0, 0.1), True), (None, (None, None), True), (None, (0.0, None), False),
        ("1", (0.0, None), True), ("1", (None, None), True), ("1", (0.0, 2.0), True),
    ],
)  # fmt: skip
def test_scans_without_a_session_are_of_one_only_when_neither_has_a_year(session, years, repeats):
    """A named session is believed whatever the years: it is the user's word for one measurement."""
    table = cohort(scans=2)
    table = table.assign(
        run=table["session_id"], visit_years=table["session_id"].map(dict(zip("01", years, strict=True)))
    )
    table = table.assign(session_id=session).astype({"session_id": "string", "visit_years": "float64"})
    results = evaluate_gap(readout(table), config=CONFIG, seed=1).results
    found = results[(results["task"] == "gap_repeat") & (results["metric"] == "icc")].iloc[0]
    assert (found["n"] == 160) == repeats
    assert ("0 people were scanned twice" in found["note"]) == (not repeats)


def test_the_order_of_the_rows_changes_nothing(whole):
    given, found = whole
    order = np.random.default_rng(9).permutation(len(given.table))
    shuffled = dataclasses.replace(
        given, table=given.table.iloc[order], features=given.features[order], correct=given.correct[order],
        predicted_age_years=given.predicted_age_years[order], score=given.score[order],
    )  # fmt: skip
    other = evaluate_gap(shuffled, config=CONFIG, seed=1).results
    pd.testing.assert_frame_equal(other, found.results, rtol=1e-9)


def test_a_correction_of_other_people_is_not_crossed():
    table = cohort()
    val = table["participant_id"] < "p060"
    table["split"] = np.where(val, "val", "test_internal")
    given = readout(table, correct=(healthy(table) & val).to_numpy(), score=~val.to_numpy())
    found = evaluate_gap(given, config=CONFIG, seed=1)
    gaps = found.frames["gaps"]
    assert set(gaps["corrected_by"]) == {-1}
    assert len(gaps) == (~val).sum()
    one = row(found.results, "gap", "mean_years", group="CN", correction="beheshti")
    assert one["split"] == "test_internal"
    assert "none of whom is scored" in one["note"]


def test_healthy_people_on_both_sides_are_cross_fitted_even_when_most_are_not_scored():
    table = cohort()
    some = (table["participant_id"] < "p060").to_numpy()
    gaps = evaluate_gap(readout(table, score=some), config=CONFIG, seed=1).frames["gaps"]
    assert ((gaps["corrected_by"] >= 0) == gaps["healthy"]).all()


def test_somebody_who_falls_ill_later_is_in_the_group_of_the_first_visit_and_counted():
    table = cohort()
    later = (table["participant_id"] == table.loc[table["diagnosis"] == "CN", "participant_id"].iloc[0]) & (
        table["session_id"] == "1"
    )
    table.loc[later, "diagnosis"] = "MCI"
    found = evaluate_gap(readout(table), config=CONFIG, seed=1)
    note = row(found.results, "gap", "mean_years", group="CN", correction="none")["note"]
    assert "1 of them have another diagnosis at other visits" in note


def test_people_without_a_diagnosis_are_left_out_and_counted():
    table = cohort()
    table.loc[table["participant_id"] < "p010", "diagnosis"] = pd.NA
    found = evaluate_gap(readout(table), config=CONFIG, seed=1)
    note = row(found.results, "gap", "mean_years", group="AD", correction="none")["note"]
    assert "10 people without a diagnosis of CN, MCI or AD left out" in note
    assert len(found.frames["gaps"]) == len(table)


@pytest.mark.parametrize("column", ["there, empty", "absent"])
def test_without_any_diagnosis_everybody_is_one_group_and_there_are_no_contrasts(column):
    table = cohort().drop(columns="mci_outcome") if column == "absent" else cohort()
    table["diagnosis"] = pd.array([pd.NA] * len(table), dtype="string")
    results = evaluate_gap(readout(table), config=CONFIG, seed=1).results
    one = row(results, "gap", "mean_years", group="everybody", correction="beheshti")
    assert NOBODY_DIAGNOSED in one["note"]
    assert one["n"] == 160
    contrasts = results[results["task"] == "gap_contrast"]
    assert contrasts["note"].tolist() == [f"not computed: no groups: {NOBODY_DIAGNOSED}"]


@pytest.mark.parametrize("diagnosis", ["other", None])
def test_scored_people_of_no_group_among_others_with_a_diagnosis_are_not_called_healthy(diagnosis):
    table = cohort()
    scored = (table["participant_id"] < "p060").to_numpy()
    table.loc[scored, "diagnosis"] = diagnosis
    results = evaluate_gap(readout(table, score=scored), config=CONFIG, seed=1).results
    assert results.loc[results["task"] == "gap", "note"].tolist() == [
        "not computed: no scored scan has a diagnosis of CN, MCI or AD"
    ]
    missing = row(results, "gap_contrast", "difference_years", contrast="AD-CN", correction="none")
    assert "0 people of AD and 0 people of CN" in missing["note"]
    assert np.isfinite(row(results, "gap_repeat", "icc", correction="beheshti")["estimate"])


def test_patients_in_the_correction_set_are_refused():
    table = cohort()
    with pytest.raises(DataError, match="people to fit on are not healthy, first c/p"):
        evaluate_gap(readout(table, correct=np.ones(len(table), dtype=bool)), config=CONFIG, seed=1)


def test_a_class_of_two_people_has_a_count_and_no_number():
    table = cohort()
    ill = table.loc[table["diagnosis"] == "AD", "participant_id"].unique()[2:]
    results = evaluate_gap(readout(table[~table["participant_id"].isin(ill)]), config=CONFIG, seed=1).results
    one = row(results, "gap", "mean_years", group="AD", correction="none")
    assert np.isnan(one["estimate"])
    assert one["n"] == 2
    missing = row(results, "gap_contrast", "difference_years", contrast="AD-CN", correction="cole")
    assert missing["note"].endswith("not computed: 2 people of AD, fewer than 5")
    holm = row(results, "gap_contrast", "p_holm", contrast="MCI-CN", correction="cole")
    assert "Holm over 2 contrasts" in holm["note"]  # MCI-CN and pMCI-sMCI


def test_one_site_and_one_sex_are_said_to_be_so():
    table = cohort(sites=1).assign(sex="F")
    results = evaluate_gap(readout(table), config=CONFIG, seed=1).results
    one = row(results, "gap_contrast", "difference_years", contrast="AD-CN", correction="none")
    assert np.isfinite(one["low"])
    assert "one site: no term of site" in one["note"]
    assert "all of sex F: no term of sex" in one["note"]


def test_patients_at_sites_of_their_own_cannot_be_told_from_the_site():
    table = cohort()
    table["site"] = table["site"].mask(table["diagnosis"] == "AD", "clinic")
    results = evaluate_gap(readout(table), config=CONFIG, seed=1).results
    one = row(results, "gap_contrast", "difference_years", contrast="AD-CN", correction="none")
    assert "group cannot be told from site" in one["note"]
    assert np.isfinite(row(results, "gap_contrast", "p", contrast="MCI-CN", correction="none")["estimate"])


def test_too_few_healthy_people_leave_the_raw_gap_and_rows_that_refuse_the_rest():
    table = cohort()
    well = table.loc[table["diagnosis"] == "CN", "participant_id"].unique()[8:]
    found = evaluate_gap(readout(table[~table["participant_id"].isin(well)]), config=CONFIG, seed=1)
    assert np.isfinite(row(found.results, "gap", "mean_years", group="CN", correction="none")["estimate"])
    for name in NAMES[1:]:
        for task, parts in (("gap", {"group": "CN"}), ("gap_contrast", {"contrast": "MCI-CN"}), ("gap_repeat", {})):
            metric = {"gap": "mean_years", "gap_contrast": "difference_years", "gap_repeat": "icc"}[task]
            assert "found 8" in row(found.results, task, metric, **parts, correction=name)["note"]
        assert found.frames["gaps"][f"gap_{name}_years"].isna().all()


def test_ages_outside_those_of_the_correction_are_counted():
    table = cohort()
    young = (healthy(table) & (table["age_years"] < 70)).to_numpy()
    given = readout(table, correct=young, score=~young)
    note = row(
        evaluate_gap(given, config=CONFIG, seed=1).results, "gap", "sd_years", group="AD", correction="conditional"
    )["note"]
    people = table[young].groupby("participant_id").ngroups
    ages, low, high = table["age_years"], table["age_years"][young].min(), table["age_years"][young].max()
    outside = (((ages > high) | (ages < low)) & ~young).sum()
    assert f"correction fitted on {people} people of 55-70 years" in note
    assert f"{outside} of {(~young).sum()} scans outside these ages: extrapolated" in note


def test_one_prediction_for_everybody_and_nobody_to_score_are_refused_in_a_row():
    given = readout(cohort())
    flat = dataclasses.replace(given, predicted_age_years=np.full(len(given.table), 70.0))
    found = evaluate_gap(flat, config=CONFIG, seed=1)
    assert "every scored scan is predicted the same age" in found.results["note"][0]
    assert not found.frames
    nobody = evaluate_gap(readout(cohort(), score=np.zeros(320, dtype=bool)), config=CONFIG, seed=1)
    assert "no scan is scored" in nobody.results["note"][0]


def test_a_flat_prediction_leaves_cole_out_and_keeps_the_others():
    given = readout(cohort())
    noise = 70 + np.random.default_rng(0).normal(0, 1, len(given.table))
    results = evaluate_gap(dataclasses.replace(given, predicted_age_years=noise), config=CONFIG, seed=1).results
    assert "it divides by that" in row(results, "gap", "mean_years", group="CN", correction="cole")["note"]
    assert np.isfinite(row(results, "gap", "mean_years", group="CN", correction="beheshti")["estimate"])


def test_no_row_names_a_person_and_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = evaluate_gap(readout(cohort(sites=40)), config=CONFIG, seed=1).results
    assert not results["note"].str.contains("p0|p1|c/").any()


def test_groups_are_those_of_the_visit_and_unknown_outcomes_are_in_neither():
    outcomes = [None, "stable", "progressive", "unknown", None]
    table = pd.DataFrame({"diagnosis": ["CN", "MCI", "MCI", "MCI", "other"], "mci_outcome": outcomes})
    groups = groups_of(table.astype("string"))
    assert {name: np.flatnonzero(rows).tolist() for name, rows in groups.items()} == {
        "CN": [0], "MCI": [1, 2, 3], "sMCI": [1], "pMCI": [2],
    }  # fmt: skip
