"""The gap over the years: rows against models fitted by hand, who counts as what, and cohorts that cannot be fitted."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from statsmodels.regression.mixed_linear_model import MixedLM

from brainage.config import EvaluateConfig
from brainage.downstream.longitudinal import DIFFERENCE, TRAJECTORY_COLUMNS, evaluate_longitudinal
from brainage.downstream.results import read_results, write_results
from brainage.downstream.trajectories import follow
from brainage.errors import DataError
from tests.downstream.followed_people import found, make_gaps, make_readout

CORRECTED, RAW = {"correction": "beheshti"}, {"correction": "none"}


def evaluate(gaps, **keys):
    return evaluate_longitudinal(make_readout(gaps), gaps, config=EvaluateConfig(bootstrap=60, **keys), seed=0)


def people(*rows, **columns):
    """Gaps of (person, years, diagnosis, mci_outcome, gap)."""
    names = ["participant_id", "visit_years", "diagnosis", "mci_outcome", "gap_beheshti_years"]
    frame = pd.DataFrame(rows, columns=names)
    frame["session_id"] = [f"s{row}" for row in range(len(frame))]
    frame = frame.assign(cohort="adni", run="1", sex="F", age_years=70.25 + frame["visit_years"].fillna(0))
    return frame.assign(**columns).astype({"diagnosis": "string", "mci_outcome": "string", "sex": "string"})


@pytest.fixture(scope="module")
def cohort():
    return make_gaps(150, 4, conversion=0.25)


@pytest.fixture(scope="module")
def result(cohort):
    return evaluate(cohort)


def test_slopes_and_differences_are_those_of_statsmodels(cohort, result):
    table = cohort.sort_values(["participant_id", "visit_years"])
    first = table.groupby("participant_id")[["diagnosis", "age_years"]].transform("first")
    t, mci, ad = table["visit_years"], *((first["diagnosis"] == name).astype(float) for name in ("MCI", "AD"))
    age, male = first["age_years"] - first["age_years"].mean(), table["sex"] == "M"
    columns = [1 + 0 * t, t, mci, mci * t, ad, ad * t, age, male]
    terms = np.column_stack([column.to_numpy(dtype=float) for column in columns])
    model = MixedLM(table["gap_beheshti_years"].to_numpy(), terms, table["participant_id"].to_numpy(str),
                    exog_re=terms[:, :2])  # fmt: skip
    theirs = model.fit(method=["lbfgs"])
    assert theirs.converged
    rows = result.results
    for group, value in {"CN": 0, "MCI": theirs.fe_params[3], "AD": theirs.fe_params[5]}.items():
        row = found(rows, "slope_years_per_year", group=group, **CORRECTED)
        assert row["estimate"] == pytest.approx(theirs.fe_params[1] + value, abs=2e-3)
        assert row["n"] == 50
    row = found(rows, "slope_difference_years_per_year", contrast="AD-CN", **CORRECTED)
    assert row["estimate"] == pytest.approx(theirs.fe_params[5], abs=2e-3)
    assert (row["high"] - row["low"]) / 2 == pytest.approx(stats.t.ppf(0.975, 147) * theirs.bse_fe[5], rel=0.01)
    assert found(rows, "coefficient", term="baseline_age", **CORRECTED)["estimate"] == pytest.approx(
        theirs.fe_params[6], abs=1e-3
    )
    p = [found(rows, "p", contrast=name, **CORRECTED)["estimate"] for name in ("MCI-CN", "AD-CN", "AD-MCI")]
    adjusted = [found(rows, "p_holm", contrast=name, **CORRECTED)["estimate"] for name in ("MCI-CN", "AD-CN", "AD-MCI")]
    assert min(adjusted) == pytest.approx(3 * min(p))
    assert max(adjusted) >= max(p)


def test_a_linear_correction_shifts_every_slope_and_no_difference(result):
    for group in ("CN", "MCI", "AD"):
        corrected = found(result.results, "slope_years_per_year", group=group, **CORRECTED)
        raw = found(result.results, "slope_years_per_year", group=group, **RAW)
        assert corrected["estimate"] - raw["estimate"] == pytest.approx(0.1, abs=1e-6)
    metric = "slope_difference_years_per_year"
    assert found(result.results, metric, contrast="AD-CN", **CORRECTED)["estimate"] == pytest.approx(
        found(result.results, metric, contrast="AD-CN", **RAW)["estimate"], abs=1e-6
    )


def test_notes_say_what_a_correction_leaves_out_and_that_the_raw_gap_is_no_further_evidence(cohort, result):
    def note(rows, metric, **parts):
        return found(rows, metric, **parts)["note"]

    known, difference, own = "the correction is taken as known", DIFFERENCE, "person_slope_mean_years_per_year"
    assert known in note(result.results, "slope_years_per_year", group="AD", **CORRECTED)
    assert known in note(result.results, own, group="AD", subset="2+ visits", **CORRECTED)
    assert known not in note(result.results, difference, contrast="AD-CN", **CORRECTED)
    assert not result.results["note"].str.contains(f"correction=none.*{known}").any()
    cole = evaluate(cohort, correction="cole").results
    assert known in note(cole, difference, contrast="AD-CN", correction="cole")
    assert "same evidence seen twice" in note(result.results, difference, contrast="AD-CN", **RAW)
    assert "same evidence" not in note(result.results, difference, contrast="AD-CN", **CORRECTED)
    assert "3 contrasts of groups under this correction alone" in note(
        result.results, "p_holm", contrast="AD-CN", **CORRECTED
    )


def test_with_two_visits_and_one_man_only_the_difference_of_the_sexes_is_missing():
    gaps = make_gaps(60, 2)
    gaps["sex"] = pd.array(np.where(gaps["participant_id"] == "p00001", "M", "F"), dtype="string")
    rows = evaluate(gaps).results
    row = found(rows, "coefficient", term="sex_M", **CORRECTED)
    assert np.isnan(row["estimate"])
    assert "one person alone" in row["note"]
    row = found(rows, DIFFERENCE, contrast="AD-CN", **CORRECTED)
    assert "Satterthwaite" in row["note"]
    assert row["low"] < row["estimate"] < row["high"]


def test_every_number_has_its_row_once_and_the_table_survives_the_disk(result, tmp_path):
    write_results(result.results, tmp_path / "results.csv")
    assert len(read_results(tmp_path / "results.csv")) == len(result.results)
    metrics = set(result.results["metric"])
    assert {"slope_years_per_year", "slope_difference_years_per_year", "p", "p_holm", "coefficient", "sd_years",
            "sd_years_per_year", "difference_years", "person_slope_mean_years_per_year",
            "person_slope_sd_years_per_year", "visits_share", "follow_up_years",
            "follow_up_odds_ratio"} == metrics  # fmt: skip
    assert evaluate(make_gaps(60), correction="none").results["note"].str.count("correction=none").max() == 1


def test_peoples_own_slopes_are_least_squares_lines(cohort, result):
    frame = result.frames["trajectories"]
    assert list(frame.columns) == TRAJECTORY_COLUMNS
    assert len(frame) == len(cohort)
    for _, part in list(frame.groupby("participant_id"))[:10]:
        expected = np.polyfit(part["visit_years"], part["gap_years"], 1)[0]
        np.testing.assert_allclose(part["slope_years_per_year"], expected, rtol=1e-6)
    own = frame.drop_duplicates("participant_id")
    own = own.loc[own["group"] == "MCI", "slope_years_per_year"]
    parts = {"group": "MCI", "subset": "3+ visits", **CORRECTED}
    assert found(result.results, "person_slope_mean_years_per_year", **parts)["estimate"] == pytest.approx(own.mean())
    assert found(result.results, "person_slope_sd_years_per_year", **parts)["estimate"] == pytest.approx(
        own.std(ddof=1)
    )


def test_a_rise_before_conversion_is_found_in_its_band_and_nowhere_else(cohort):
    risen = cohort.copy()
    followed = follow(risen, "beheshti")
    near = followed.scans[(followed.scans["group"] == "MCI") & followed.scans["years_to_conversion"].between(1e-6, 2)]
    keys = ["participant_id", "session_id"]
    hit = risen.set_index(keys).index.isin(pd.MultiIndex.from_frame(near[keys]))
    risen.loc[hit, "gap_beheshti_years"] += 5.0
    parts = {"group": "MCI", "contrast": "converter-stable", **CORRECTED}
    before, after = evaluate(cohort).results, evaluate(risen).results
    bands = {"0-2 years before": 5.0, "at conversion or later": 0.0}
    for band, rise in bands.items():
        rows = [found(r, "difference_years", band=band, **parts)["estimate"] for r in (before, after)]
        assert rows[1] - rows[0] == pytest.approx(rise, abs=0.35)


def test_who_worsens_is_a_converter_and_who_was_seen_once_is_unknown():
    gaps = people(
        ("worse", 0.0, "CN", None, 1), ("worse", 1.0, "MCI", "progressive", 1), ("worse", 2.0, "AD", None, 1),
        ("back", 0.0, "MCI", None, 1), ("back", 1.0, "AD", None, 1), ("back", 2.0, "MCI", None, 1),
        ("late", 0.0, "MCI", "stable", 1), ("late", 5.0, "AD", None, 1),
        ("hidden", 0.0, "MCI", "progressive", 1), ("hidden", 0.5, "MCI", "progressive", 1),
        ("short", 0.0, "MCI", "unknown", 1), ("short", 1.0, "MCI", "unknown", 1),
        ("stable", 0.0, "CN", None, 1), ("stable", 2.0, "CN", None, 1), ("stable", 3.0, None, None, 1),
        ("once", 0.0, "CN", None, 1), ("ill", 0.0, "AD", None, 1), ("ill", 1.0, "AD", None, 1),
        ("other", 0.0, "other", None, 1), ("other", 1.0, "AD", None, 1),
    )  # fmt: skip
    followed = follow(gaps, "beheshti")
    found = followed.people.rename(index=lambda key: key.split("/")[1])
    outcome = found["converter"].to_dict()
    assert pd.isna(outcome.pop("ill"))
    assert outcome == {"worse": "converter", "back": "converter", "late": "converter", "hidden": "converter",
                       "short": "unknown", "stable": "stable", "once": "unknown"}  # fmt: skip
    assert found.loc[found["event"], "time_years"].to_dict() == {"worse": 1.0, "back": 1.0, "late": 5.0}
    assert found.loc["stable", ["time_years", "follow_up_years"]].tolist() == [2.0, 3.0]
    scans = followed.scans[followed.scans["participant_id"] == "worse"]
    assert scans["years_to_conversion"].tolist() == [1.0, 0.0, -1.0]
    said = "; ".join(followed.notes)
    for phrase in ("1 people (2 scans) not CN, MCI, AD at their first visit left out",
                   "1 converters later seen as before",
                   "1 progressive people whose conversion is at no scan here"):  # fmt: skip
        assert phrase in said


def test_years_count_from_the_first_scan_there_is_and_two_scans_at_one_time_are_one_visit():
    gaps = people(("a", 1.0, "CN", None, 2.0), ("a", 1.0002, "CN", None, 4.0), ("a", 3.0, "CN", None, 5.0))
    followed = follow(gaps, "beheshti")
    np.testing.assert_allclose(followed.visits["years"], [0.0001, 2.0])
    assert followed.visits["gap_years"].tolist() == [3.0, 5.0]
    assert followed.people["visits"].tolist() == [2]
    assert followed.notes == ("1 further scans at the time of another averaged with it",)


def test_missing_years_come_from_ages_with_fractions_and_never_from_whole_ones():
    rows = [
        ("a", None, "CN", None, 1.0),
        ("a", 1.0, "CN", None, 2.0),
        ("b", 0.0, "CN", None, 1),
        ("b", 2.0, "CN", None, 1),
    ]
    followed = follow(people(*rows, age_years=[70.5, 71.75, 60.0, 62.0]), "beheshti")
    assert followed.visits["years"].tolist() == [0.0, 1.25, 0.0, 2.0]
    assert followed.notes == ("1 people without all visit_years are timed by their ages",)
    followed = follow(people(*rows, age_years=[70.0, 72.0, 60.0, 62.0]), "beheshti")
    assert followed.people.index.tolist() == ["adni/b"]
    assert "1 people (2 scans) without visit_years, and with ages in whole years, left out" in followed.notes
    apart = follow(people(*rows, age_years=[70.5, 71.5, 60.0, 67.0]), "beheshti")
    assert "1 people whose visit_years and ages are more than 1.5 years apart" in apart.notes


def test_a_cohort_that_nobody_was_seen_twice_in_says_so():
    result = evaluate(make_gaps(30, 1))
    assert len(result.results) == 1
    assert "nobody was seen twice" in result.results["note"].iloc[0]
    assert result.frames == {}
    assert "without visit_years" in evaluate(
        make_gaps(30, 2).assign(visit_years=np.nan, age_years=70.0)
    ).results["note"].iloc[0]  # fmt: skip


def test_a_cohort_without_diagnoses_has_the_slope_of_everybody():
    gaps = make_gaps(40, 3).assign(diagnosis=pd.array([pd.NA] * 120, dtype="string"))
    rows = evaluate(gaps).results
    row = found(rows, "slope_years_per_year", group="all", **CORRECTED)
    assert row["n"] == 40
    assert "everybody counts as healthy" in row["note"]
    assert not rows["metric"].eq("slope_difference_years_per_year").any()


def test_a_group_of_two_people_is_counted_and_not_modelled():
    gaps = make_gaps(60, 3)
    ill = gaps.loc[gaps["diagnosis"] == "AD", "participant_id"].unique()
    gaps = gaps[~gaps["participant_id"].isin(ill[2:])].reset_index(drop=True)
    rows = evaluate(gaps).results
    row = found(rows, "slope_years_per_year", group="AD", **CORRECTED)
    assert np.isnan(row["estimate"])
    assert row["n"] == 2
    assert "fewer than 5 people" in row["note"]
    assert not rows["note"].str.contains("AD-CN").any()
    shown = rows[rows["note"].str.contains("group=AD")]
    assert shown["estimate"].isna().all()


def test_one_sex_is_not_adjusted_for_and_unknown_sex_is_left_out_and_counted():
    gaps = make_gaps(60, 3)
    rows = evaluate(gaps.assign(sex=pd.array(["F"] * 180, dtype="string"))).results
    assert "all of sex F, not adjusted for" in found(rows, "slope_years_per_year", group="CN", **CORRECTED)["note"]
    assert not rows["note"].str.contains("term=sex_M").any()
    gaps.loc[gaps["participant_id"].isin(["p00000", "p00003"]), "sex"] = pd.NA
    row = found(evaluate(gaps).results, "slope_years_per_year", group="CN", **CORRECTED)
    assert "2 people of unknown sex left out" in row["note"]
    assert row["n"] == 18
    ill = sorted(gaps.loc[gaps["diagnosis"] == "AD", "participant_id"].unique())
    gaps.loc[gaps["participant_id"].isin(ill[3:]), "sex"] = pd.NA
    row = found(evaluate(gaps).results, "slope_years_per_year", group="AD", **CORRECTED)
    assert np.isnan(row["estimate"])
    assert row["n"] == 3


def test_drop_out_that_follows_the_gap_is_seen():
    gaps = make_gaps(200, 3)
    first = gaps[gaps["session_id"] == "v0"].set_index("participant_id")["gap_beheshti_years"]
    lost = first.index[first > first.quantile(0.6)]
    rng = np.random.default_rng(0)
    lost = lost[rng.random(len(lost)) < 0.7].union(first.index[rng.random(200) < 0.1])
    gaps = gaps[~gaps["participant_id"].isin(lost) | (gaps["session_id"] == "v0")].reset_index(drop=True)
    rows = evaluate(gaps).results
    gap = found(rows, "follow_up_odds_ratio", term="gap", **CORRECTED)
    age = found(rows, "follow_up_odds_ratio", term="age", **CORRECTED)
    assert gap["high"] < 1
    assert age["low"] < 1 < age["high"]
    people = follow(gaps, "beheshti").people
    terms = np.column_stack([people["gap_years"], people["age_years"], people["sex"] == "M", people["group"] == "AD",
                             people["group"] == "MCI"]).astype(float)  # fmt: skip
    theirs = LogisticRegression(C=np.inf, tol=1e-8, max_iter=5000).fit(terms, people["visits"] > 1)
    np.testing.assert_allclose([gap["estimate"], age["estimate"]], np.exp(theirs.coef_[0, :2]), rtol=1e-3)
    shares = [found(rows, "visits_share", group="AD", subset=name)["estimate"]
              for name in ("1 visit", "2 visits", "3+ visits")]  # fmt: skip
    once = gaps[gaps["diagnosis"] == "AD"].groupby("participant_id").size().eq(1).mean()
    np.testing.assert_allclose(shares, [once, 0.0, 1 - once])


def test_a_gap_that_is_missing_is_left_out_and_counted_and_none_at_all_says_so():
    gaps = make_gaps(60, 3)
    gaps.loc[gaps["participant_id"] == "p00001", "gap_beheshti_years"] = np.nan
    row = found(evaluate(gaps).results, "slope_years_per_year", group="MCI", **CORRECTED)
    assert "1 people (3 scans) without a gap left out" in row["note"]
    note = evaluate(gaps.assign(gap_beheshti_years=np.nan)).results["note"].iloc[0]
    assert "60 people (180 scans) without a gap left out" in note


def test_tables_that_cannot_be_read_are_refused():
    gaps = make_gaps(12, 2)
    with pytest.raises(DataError, match="visit_years below 0"):
        follow(gaps.assign(visit_years=-1.0), "beheshti")
    with pytest.raises(DataError, match="'gap_beheshti_years' missing"):
        follow(gaps.drop(columns="gap_beheshti_years"), "beheshti")
    with pytest.raises(DataError, match="1 scans are there more than once"):
        follow(pd.concat([gaps, gaps[:1]]), "beheshti")
