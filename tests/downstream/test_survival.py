"""Conversion by the gap at the first scan: rows against statsmodels by hand, censoring, and cohorts without enough."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.duration.hazard_regression import PHReg

from brainage.config import EvaluateConfig
from brainage.downstream.results import read_results, write_results
from brainage.downstream.survival import SURVIVAL_COLUMNS, evaluate_survival
from tests.downstream.followed_people import found, make_gaps, make_readout

CORRECTED = {"correction": "beheshti"}


def evaluate(gaps, **keys):
    return evaluate_survival(make_readout(gaps), gaps, config=EvaluateConfig(bootstrap=60, **keys), seed=0)


@pytest.fixture(scope="module")
def cohort():
    return make_gaps(240, 5, conversion=0.15, hazard_gap=0.4)


@pytest.fixture(scope="module")
def result(cohort):
    return evaluate(cohort)


def by_hand(cohort, group, worse):
    """time, event, first visit of everybody of a group, person by person."""
    rows = []
    for _, part in cohort.sort_values("visit_years").groupby("participant_id"):
        first = part.iloc[0]
        if first["diagnosis"] != group:
            continue
        turned = part[part["diagnosis"].isin(worse)]
        time = (turned if len(turned) else part.tail(1))["visit_years"].iloc[0]
        rows.append((time, len(turned) > 0, first["gap_beheshti_years"], first["age_years"], first["sex"] == "M"))
    return np.array(rows, dtype=float).T


@pytest.mark.parametrize(("group", "worse"), [("CN", ["MCI", "AD"]), ("MCI", ["AD"])])
def test_hazard_ratios_are_those_of_statsmodels_on_times_found_by_hand(cohort, result, group, worse):
    time, event, *terms = by_hand(cohort, group, worse)
    theirs = PHReg(time, np.column_stack(terms), status=event, ties="efron").fit()
    for place, term in enumerate(("gap", "age", "sex_M")):
        row = found(result.results, "hazard_ratio", group=group, term=term, **CORRECTED)
        expected = np.exp([theirs.params[place], *theirs.conf_int()[place]])
        np.testing.assert_allclose([row["estimate"], row["low"], row["high"]], expected, rtol=1e-3)
        p = found(result.results, "p", group=group, term=term, **CORRECTED)["estimate"]
        assert p == pytest.approx(theirs.pvalues[place], rel=0.01)
    row = found(result.results, "hazard_ratio", group=group, term="gap", **CORRECTED)
    assert row["n"] == 80
    assert f"{int(event.sum())} conversions among 80 people" in row["note"]
    assert "censored at their last diagnosis" in row["note"]


def test_a_planted_hazard_shows_in_every_view_of_it(result):
    rows = result.results
    assert found(rows, "hazard_ratio", group="MCI", term="gap", **CORRECTED)["low"] > 1
    assert found(rows, "concordance", group="MCI", predictor="gap", **CORRECTED)["low"] > 0.5
    assert found(rows, "p", group="MCI", contrast="thirds of the gap", **CORRECTED)["estimate"] < 0.01
    shares = [found(rows, "converted_share_3_years", group="MCI", subset=f"{third} third", **CORRECTED)["estimate"]
              for third in ("lowest", "middle", "highest")]  # fmt: skip
    assert shares == sorted(shares)
    assert found(rows, "p", group="MCI", contrast="proportional hazards", term="gap", **CORRECTED)["n"] > 10


def test_the_frame_has_one_row_a_person_who_can_convert(cohort, result, tmp_path):
    frame = result.frames["survival"]
    assert list(frame.columns) == SURVIVAL_COLUMNS
    assert len(frame) == frame["participant_id"].nunique() == 160
    assert frame.groupby("group")["stratum"].value_counts().between(26, 28).all()
    edges = frame[frame["group"] == "CN"].groupby("stratum")["gap_years"].agg(["min", "max"])
    assert edges.loc["lowest third", "max"] < edges.loc["middle third", "min"]
    write_results(result.results, tmp_path / "results.csv")
    assert len(read_results(tmp_path / "results.csv")) == len(result.results)


def test_people_seen_once_are_left_out_and_counted(cohort):
    once = cohort["participant_id"].isin(sorted(cohort["participant_id"].unique())[:30])
    gaps = cohort[~once | (cohort["session_id"] == "v0")].reset_index(drop=True)
    row = found(evaluate(gaps).results, "hazard_ratio", group="MCI", term="gap", **CORRECTED)
    assert row["n"] == 70
    assert "10 without a later diagnosis left out" in row["note"]


def test_fewer_than_ten_conversions_give_no_number():
    result = evaluate(make_gaps(60, 3, conversion=0.02))
    assert result.results["estimate"].isna().all()
    row = found(result.results, "hazard_ratio", group="MCI", term="gap", **CORRECTED)
    assert "fewer than 10" in row["note"]
    assert len(result.frames["survival"]) == 40


def test_a_group_of_two_people_has_their_number_only():
    gaps = make_gaps(60, 3, conversion=0.5)
    mci = gaps.loc[(gaps["diagnosis"] == "MCI") & (gaps["visit_years"] == 0), "participant_id"]
    rows = evaluate(gaps[~gaps["participant_id"].isin(mci[2:])].reset_index(drop=True)).results
    row = found(rows, "hazard_ratio", group="MCI", term="gap", **CORRECTED)
    assert row["n"] == 2
    assert "fewer than 5 people" in row["note"]


@pytest.mark.parametrize("kind", ["nobody diagnosed", "only AD", "one visit"])
def test_a_cohort_in_which_nobody_can_convert_says_so(kind):
    gaps = make_gaps(30, 1 if kind == "one visit" else 3)
    if kind != "one visit":
        word = pd.NA if kind == "nobody diagnosed" else "AD"
        gaps["diagnosis"] = pd.array([word] * len(gaps), dtype="string")
    result = evaluate(gaps)
    assert len(result.results) == 1
    assert result.results["estimate"].isna().all()
    assert result.frames == {}
    expected = "everybody counts as healthy" if kind == "nobody diagnosed" else "nobody with CN or MCI"
    assert expected in result.results["note"].iloc[0]


def test_one_sex_equal_gaps_and_equal_ages_are_named(cohort):
    rows = evaluate(cohort.assign(sex=pd.array(["M"] * len(cohort), dtype="string"))).results
    assert "not adjusted for sex" in found(rows, "hazard_ratio", group="CN", term="gap", **CORRECTED)["note"]
    rows = evaluate(cohort.assign(gap_beheshti_years=1.0)).results
    row = found(rows, "hazard_ratio", group="CN", term="gap", **CORRECTED)
    assert "not told apart" in row["note"]
    row = found(rows, "p", group="CN", contrast="thirds of the gap", **CORRECTED)
    assert "one value only" in row["note"]
    assert found(rows, "concordance", group="CN", predictor="gap", **CORRECTED)["estimate"] == 0.5
