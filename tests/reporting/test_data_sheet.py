"""The data sheet: its numbers are the table's, one block a cohort, and nobody can be told from it."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from brainage.data.exclusion import exclude
from brainage.data.table import KEY, finish_dropped, finish_table, read_table, write_table
from brainage.reporting.cohort import anonymous_reasons, diagnosis_sheet, visits_sheet
from brainage.reporting.data_sheet import data_sheet, write_data_sheet
from brainage.reporting.page import Canvas, Page
from brainage.reporting.quality_sheet import quality_sheet
from brainage.reporting.run_folder import read_run
from brainage.reporting.sections import cohort as cohort_section

PREFIX = "ZQXV"  # occurs in identifiers and nowhere else


@pytest.fixture
def cohort():
    return invented("adni", 120, seed=0)


def invented(name, people, *, seed, sites=4):
    """People with one to three visits, three diagnoses, and quality columns of the cohort's own."""
    draw = np.random.default_rng(seed)
    visits = draw.integers(1, 4, people)
    person = np.repeat(np.arange(people), visits)
    visit = np.concatenate([np.arange(count) for count in visits])
    n = len(person)
    rows = pd.DataFrame({
        "cohort": name, "participant_id": [f"{PREFIX}{number:04d}" for number in person],
        "session_id": (visit + 1).astype(str), "site": [f"s{number % sites}" for number in person],
        "age_years": draw.uniform(55, 90, people)[person] + visit, "visit_years": visit.astype(float),
        "sex": np.where(person % 2, "F", "M"), "diagnosis": np.array(["CN", "MCI", "AD"])[person % 3],
        "split": np.where(person % 4, "train", "test_internal"), "path": [f"{PREFIX}{row}.nii" for row in range(n)],
        "qc_iqr": draw.uniform(1.5, 4.5, n), "qc_pass": (draw.uniform(0, 1, n) > 0.1).astype(float),
    })  # fmt: skip
    return finish_table(rows, source=name).table


def computed(table, flagged=3):
    draw = np.random.default_rng(1)
    quality = table[KEY].assign(
        qc_coverage=draw.normal(0.9, 0.01, len(table)), qc_spread=draw.normal(1, 0.05, len(table)),
        qc_mean_corr=draw.normal(0.95, 0.005, len(table)), qc_duplicates=0.0, qc_age_z=0.0,
        qc_flags=pd.array([pd.NA] * len(table), dtype="string"),
    )  # fmt: skip
    quality.loc[: flagged - 1, "qc_mean_corr"] = 0.1
    quality.loc[: flagged - 1, "qc_flags"] = "mean_corr"
    return quality.assign(qc_flag_count=quality["qc_flags"].notna().astype(float))


def without(table: pd.DataFrame, rules: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Kept and dropped scans."""
    reasons = exclude(table, rules).reasons
    out = reasons.notna()
    return table[~out].reset_index(drop=True), finish_dropped(table.assign(reason=reasons)[out])


def test_the_page_has_every_part_and_its_files_and_names_nobody(cohort, tmp_path):
    kept, dropped = without(cohort, ["qc_pass == 0", f"participant_id == {PREFIX}0007"])
    page = write_data_sheet(tmp_path, kept, dropped, computed(cohort))
    text = page.read_text(encoding="utf-8")
    for words in (
        "by split",
        "by diagnosis",
        "Scans a person",
        "by site",
        "Quality of the scans",
        "left out, by reason",
    ):
        assert words in text, words
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == {"ages", "ages_by_sex", "ages_by_diagnosis", "ages_by_site", "site_ages"}
    tables = {path.stem for path in (tmp_path / "tables").glob("*.csv")}
    assert tables == {"cohort", "diagnoses", "visits", "sites", "quality", "dropped"}
    assert text.count("<img ") == len(drawn)
    assert "excluded by data.exclude: qc_pass == 0" in text
    assert "excluded by data.exclude: a rule about participant_id" in text
    for path in (page, *(tmp_path / "tables").iterdir()):
        assert PREFIX not in path.read_text(encoding="utf-8"), path
    assert write_data_sheet(tmp_path, kept, dropped, computed(cohort)).read_text() == text


def test_the_numbers_are_those_of_the_table(cohort):
    rows = diagnosis_sheet(cohort).data.set_index("group")
    for code in ("CN", "MCI", "AD"):
        own = cohort[cohort["diagnosis"] == code]
        assert rows.loc[code, "scans"] == len(own)
        assert rows.loc[code, "people"] == own["participant_id"].nunique()
        assert rows.loc[code, "age_mean"] == pytest.approx(own["age_years"].mean())
    visits = visits_sheet(cohort).data.set_index("scans")["people"]
    assert visits.to_dict() == cohort["participant_id"].value_counts().value_counts().to_dict()
    assert (visits * visits.index).sum() == len(cohort)


def test_quality_counts_what_lies_beyond_published_and_computed_limits(cohort):
    sheet = quality_sheet(cohort, computed(cohort)).data.set_index("column")
    assert sheet.loc["qc_iqr", "flagged"] == (cohort["qc_iqr"] >= 4).sum()
    assert sheet.loc["qc_iqr", "high"] == 4
    assert sheet.loc["qc_pass", "flagged"] == (cohort["qc_pass"] == 0).sum()
    assert sheet.loc["qc_mean_corr", "flagged"] == 3
    assert sheet.loc["qc_duplicates", "flagged"] == 0
    assert sheet.loc["qc_iqr", "median"] == pytest.approx(cohort["qc_iqr"].median())
    assert quality_sheet(cohort.drop(columns=["qc_iqr", "qc_pass"]), None) is None


def test_a_mixture_has_an_overview_and_one_block_a_cohort(cohort, tmp_path):
    other = invented("ixi 2", 60, seed=2).drop(columns=["qc_iqr", "qc_pass"]).assign(diagnosis="CN")
    both = pd.concat([cohort, other.astype({"diagnosis": "string"})], ignore_index=True)
    _, dropped = without(both, ["age_years > 89"])
    lost = dropped.iloc[:1].assign(cohort="gone", reason="table empty")
    blocks = data_sheet(Canvas(tmp_path), both, pd.concat([dropped, lost]), computed(cohort))
    titles = [block.title for block in blocks if block.title]
    assert titles[0] == "The cohorts"
    assert titles.index("The cohort by split (adni)") < titles.index("The cohort by split (ixi 2)")
    files = {path.stem for path in (tmp_path / "tables").glob("*.csv")}
    assert files >= {"cohorts", "cohort_adni", "cohort_ixi_2", "quality_adni", "dropped_adni", "dropped_none_of_these"}
    assert "quality_ixi_2" not in files
    overview = pd.read_csv(tmp_path / "tables" / "cohorts.csv").set_index("group")
    assert overview.loc["adni", "scans"] == len(cohort)
    assert overview.loc["all", "people"] == 180  # the same ids in two cohorts are two people


def test_fewer_than_five_people_show_neither_sex_nor_age(tmp_path):
    table = invented("small", 60, seed=3)
    rare = table["participant_id"].isin([f"{PREFIX}{number:04d}" for number in range(4)])
    table.loc[rare, "diagnosis"] = "other"
    table.loc[rare, "site"] = "tiny"
    blocks = data_sheet(Canvas(tmp_path), table, None)
    row = diagnosis_sheet(table).data.set_index("group").loc["other"]
    assert row["people"] == 4
    assert row[["F", "M", "age_mean", "age_min", "age_max"]].isna().all()
    (drawn,) = (block.content for block in blocks if block.kind == "figures")
    alts = {figure.name: figure.alt for figure in drawn}
    assert "other" not in alts["ages_by_diagnosis"]
    few = table[rare]
    ages = {f"{age:.1f}" for age in few["age_years"]}
    for path in (tmp_path / "tables").glob("*.csv"):
        assert not ages & set(re.findall(r"\d+\.\d", path.read_text())), path


def test_a_table_without_splits_or_anything_else_still_has_a_sheet(cohort, tmp_path):
    bare = cohort[["cohort", "participant_id", "session_id", "age_years", "path"]]
    text = write_data_sheet(tmp_path, finish_table(bare, source="bare").table, title="Bare").read_text()
    assert "Bare" in text
    assert "No quality measure" in text
    assert "not recorded" in text
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == {"ages"}


def test_rules_are_told_in_reasons_and_what_they_say_of_persons_is_not():
    reasons = [
        "excluded by data.exclude: age_years > 80 (age_years 84.31)",
        "excluded by data.exclude: age_years > 80 (age_years 91.02)",
        f"{PREFIX}1: age 999 not in 0 to 90",
        f"excluded by data.exclude: participant_id in [{PREFIX}1, {PREFIX}2] (participant_id {PREFIX}1)",
    ]
    dropped = pd.DataFrame({"participant_id": [f"{PREFIX}1"] * 4, "reason": reasons})
    assert anonymous_reasons(dropped) == [
        "excluded by data.exclude: age_years > 80", "excluded by data.exclude: age_years > 80",
        "… age 999 not in 0 to 90", "excluded by data.exclude: a rule about participant_id",
    ]  # fmt: skip


def test_a_run_with_a_quality_file_shows_it_in_its_report(run_folder):
    table = read_table(run_folder / "table.parquet")
    write_table(computed(table).assign(quality_of="0"), run_folder / "quality.parquet")
    blocks = cohort_section(Page(read_run(run_folder)))
    (sheet,) = (block.content for block in blocks if block.title == "Quality of the scans")
    assert f"3 of {len(table)} scans have a computed flag" in sheet.note
