"""ADNI's clinical tables: spellings of releases, encodings, ages and diagnoses, by hand and for any table."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainage.errors import DataError
from data_modules.adni_tables import NO_VALUE
from data_modules.adni_visits import read_visits
from data_modules.sheets import years
from tests.data_modules import small_adni as small

CANONICAL = ["participant_id", "session_id", "age_years", "visit_years", "sex", "site", "diagnosis", "reason"]
OPTIONAL = ["RID", "SITE", "PTEDUCAT", "APOE4", "Month", "EXAMDATE"]


def visits(root, table=None, **how):
    return read_visits(small.write(root, table, **how)).set_index("session_id")


def same(left, right):
    pd.testing.assert_frame_equal(left[CANONICAL], right[CANONICAL], check_dtype=False)


# Ages


def test_age_is_the_age_at_baseline_plus_years_bl(tmp_path):
    assert visits(tmp_path)["age_years"].tolist() == pytest.approx([71.5, 72.5212, 73.4986])


def test_without_years_bl_the_dates_then_the_planned_month_then_the_code_say_when(tmp_path):
    table = small.merge()
    table["Years_bl"] = None
    dated = visits(tmp_path, table)["visit_years"].tolist()
    assert dated == pytest.approx([0, 373 / 365.25, 730 / 365.25])
    planned = visits(tmp_path, table.assign(EXAMDATE=None, Month=["0", "13", "26"]))["visit_years"].tolist()
    assert planned == pytest.approx([0, 13 / 12, 26 / 12])
    coded = visits(tmp_path, table.drop(columns=["EXAMDATE", "Month"]))["visit_years"].tolist()
    assert coded == [0, 1, 2]


def test_decimal_commas_are_understood(tmp_path):
    table = small.merge(AGE="71,5")
    same(visits(tmp_path, table, sep=";").reset_index(), visits(tmp_path, small.merge()).reset_index())
    table.to_csv(tmp_path / "ADNIMERGE.csv", index=False, sep=",")  # quoted by pandas
    assert read_visits(tmp_path)["baseline_age"].tolist() == [71.5] * 3


def test_byte_order_marks_and_cr_line_ends_change_nothing(tmp_path):
    plain = visits(tmp_path).reset_index()
    text = (tmp_path / "ADNIMERGE.csv").read_text()
    for raw in (
        b"\xef\xbb\xbf" + text.encode(),
        text.replace("\n", "\r").encode(),
        text.replace("\n", "\r\n").encode(),
    ):
        (tmp_path / "ADNIMERGE.csv").write_bytes(raw)
        same(read_visits(tmp_path), plain)


# Diagnoses, sexes, sites


@pytest.mark.parametrize(
    ("word", "ours"),
    [("CN", "CN"), ("NL", "CN"), ("MCI", "MCI"), ("Dementia", "AD"), ("NL to MCI", "MCI"), ("MCI to Dementia", "AD"),
     ("MCI to NL", "CN"), (None, None)],
)  # fmt: skip
def test_words_of_older_and_newer_releases_mean_the_same(tmp_path, word, ours):
    found = visits(tmp_path, small.merge(("m12", "2007-05-10", word, "1.02", "12")))["diagnosis"].iloc[0]
    assert found == ours or (ours is None and pd.isna(found))


def test_codes_of_change_count_as_what_the_visit_found(tmp_path):
    codes = dict(zip("123456789", ["CN", "MCI", "AD", "MCI", "AD", "AD", "CN", "MCI", "CN"], strict=True))
    rows = [(f"m{12 * int(code):02d}", None, code, None, None) for code in codes]
    table = small.merge(*rows).rename(columns={"DX": "DXCHANGE"})
    found = visits(tmp_path, table)["diagnosis"]
    assert found.tolist() == list(codes.values())


def test_unknown_diagnoses_and_sexes_are_refused_by_row(tmp_path):
    with pytest.raises(DataError, match=r"ADNIMERGE.csv: row 2: diagnosis 'vascular': expected one of cn, nl, smc"):
        visits(tmp_path, small.merge(small.VISITS[0], ("m12", "2007-05-10", "vascular", "1", "12")))
    with pytest.raises(DataError, match=r"ADNIMERGE.csv: row 1: sex 'X': expected one of"):
        visits(tmp_path, small.merge(PTGENDER="X"))


def test_a_missing_site_is_read_off_the_ptid(tmp_path):
    for site in (None, "", "27", "27.0"):
        assert visits(tmp_path, small.merge(SITE=site))["site"].tolist() == ["027"] * 3


def test_missing_values_may_be_written_as_codes(tmp_path):
    table = small.merge(PTEDUCAT="-4", MMSE="-1", FLDSTRENG="1.5 Tesla MRI")
    found = visits(tmp_path, table)
    assert found[["education_years", "mmse"]].isna().all().all()
    assert found["field_tesla"].tolist() == [1.5] * 3
    assert visits(tmp_path, small.merge(FLDSTRENG=""))["field_tesla"].isna().all()


def test_repeated_rows_of_a_visit_are_one_and_fill_each_other(tmp_path):
    empty = small.merge(small.VISITS[1]).assign(DX=None, MMSE="28")
    found = visits(tmp_path, pd.concat([small.merge(), small.merge(), empty]))
    assert len(found) == 3
    assert found.loc["m12", ["diagnosis", "mmse"]].tolist() == ["MCI", 28.0]
    assert found["reason"].isna().all()


def test_the_order_of_rows_that_differ_in_a_score_or_a_date_decides_nothing(tmp_path):
    rows = pd.concat([small.merge().assign(MMSE="28"), small.merge().assign(MMSE="26", EXAMDATE="2006-05-09")])
    pd.testing.assert_frame_equal(visits(tmp_path, rows), visits(tmp_path, rows.iloc[::-1]))


# What is read


def test_an_empty_table_and_two_of_them_are_refused(tmp_path):
    with pytest.raises(DataError, match="no ADNIMERGE table"):
        visits(tmp_path, pd.DataFrame())
    small.write(small.write(tmp_path), name="ADNIMERGE_2.csv")
    with pytest.raises(DataError, match=r"2 tables like ADNIMERGE, expected one: .*ADNIMERGE.csv, .*ADNIMERGE_2.csv"):
        read_visits(tmp_path)


def test_names_of_r_exports_are_known(tmp_path):
    table = small.merge().rename(columns={"DX_bl": "DX.bl", "Years_bl": "Years.bl"})
    same(visits(tmp_path, table).reset_index(), visits(tmp_path, small.merge()).reset_index())


def newer(root, *, entry=None, diagnoses=None):
    """The newer tables of the person of `small`."""
    who = {"PTID": small.PERSON, "RID": "74"}
    entry = entry or [{"entry_age": "71.5", "entry_date": "2006-05-02", "entry_research_group": "LMCI"}]
    diagnoses = diagnoses or [
        {"VISCODE": code, "VISCODE2": code, "EXAMDATE": date, "DIAGNOSIS": label}
        for code, date, label in (("sc", "2006-04-10", "2"), ("bl", "2006-05-02", "2"), ("m12", "2007-05-10", "3.0"))
    ]
    tables = {
        "entry": [{"subject_id": small.PERSON, "entry_visit": "bl"} | row for row in entry],
        "DXSUM": [who | row for row in diagnoses],
        "PTDEMOG": [who | {"VISCODE": "sc", "VISCODE2": "sc", "PTGENDER": "2", "PTEDUCAT": "16"}],
        "APOERES": [who | {"APGEN1": "3", "APGEN2": "4"}],
        "CDR": [who | {"VISCODE": "v11", "VISCODE2": "m12", "CDGLOBAL": "0.5", "CDRSB": "2.5"}],
    }
    for name, rows in tables.items():
        small.write(root / "tables", pd.DataFrame(rows), name=f"{name}.csv")
    return root


def test_the_newer_tables_are_joined_by_person_and_visit(tmp_path):
    found = read_visits(newer(tmp_path)).set_index("session_id")
    assert found["age_years"].tolist() == pytest.approx([71.5 - 22 / 365.25, 71.5, 71.5 + 373 / 365.25])
    assert found["diagnosis"].tolist() == ["MCI", "MCI", "AD"]
    assert found["diagnosis_detail"].tolist() == ["MCI", "LMCI", "Dementia"]
    assert found.loc["m12", ["sex", "site", "apoe4", "cdr", "cdr_sum"]].tolist() == ["F", "027", 1.0, 0.5, 2.5]


def test_who_entered_twice_is_counted_from_the_first_entry(tmp_path):
    later = {"entry_age": "76.5", "entry_date": "2011-05-02", "entry_research_group": "AD"}
    first = {"entry_age": "71.5", "entry_date": "2006-05-02", "entry_research_group": "LMCI"}
    found = read_visits(newer(tmp_path, entry=[later, first]))
    assert set(found["baseline_age"]) == {71.5}
    assert found["reason"].dropna().tolist() == ["visit sc is 0.06 years before the baseline"]


def test_screening_stands_for_a_baseline_that_is_not_there(tmp_path):
    rows = [{"VISCODE2": "sc", "EXAMDATE": "2006-04-10", "DIAGNOSIS": "1"}]
    found = read_visits(newer(tmp_path, entry=[{"entry_age": "71.5", "entry_research_group": "CN"}], diagnoses=rows))
    assert found.set_index("session_id").loc["sc", ["age_years", "diagnosis"]].tolist() == [71.5, "CN"]


# Any table

CODES = st.lists(st.sampled_from([0, 6, 12, 18, 24, 36, 48]), min_size=1, max_size=5, unique=True)
PEOPLE = st.lists(
    st.tuples(
        st.integers(2, 941), st.floats(55, 90).map(lambda age: round(age, 1)), st.sampled_from(["Male", "Female"]),
        st.lists(st.tuples(st.sampled_from([0, 6, 12, 18, 24, 36]), st.sampled_from(["CN", "MCI", "Dementia", None]),
                           st.integers(-20, 20)), min_size=1, max_size=4, unique_by=lambda visit: visit[0]),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def any_table(people):
    rows = []
    for number, (site, age, sex, seen) in enumerate(people):
        for month, label, late in seen:
            years = round(max(month / 12 + late / 365.25, 0.0), 4)
            rows.append(
                {
                    "RID": number + 1, "PTID": f"{site:03d}_S_{number + 1:04d}", "SITE": site,
                    "VISCODE": "bl" if month == 0 else f"m{month:02d}", "DX": label, "DX_bl": "CN", "AGE": age,
                    "PTGENDER": sex, "PTEDUCAT": 16, "APOE4": 0, "Month": month, "Years_bl": years,
                    "EXAMDATE": (pd.Timestamp("2010-01-01") + pd.Timedelta(days=years * 365.25)).strftime("%Y-%m-%d"),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


@settings(max_examples=12, deadline=None)
@given(people=PEOPLE, seed=st.integers(0, 99), left_out=st.sets(st.sampled_from(OPTIONAL)))
def test_any_order_of_rows_and_columns_and_any_optional_ones_give_the_same_visits(people, seed, left_out):
    table = any_table(people)
    other = (
        table.drop(columns=sorted(left_out)).sample(frac=1, random_state=seed).sample(frac=1, axis=1, random_state=seed)
    )
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        before, after = read_visits(small.write(Path(first), table)), read_visits(small.write(Path(second), other))
    same(before, after)
    assert not before.duplicated(["participant_id", "session_id"]).any()
    assert len(before) == len(table)
    truth = table.assign(age=table["AGE"] + table["Years_bl"]).set_index(["PTID", "VISCODE"])["age"]
    for row in before.itertuples():
        assert math.isclose(row.age_years, truth[row.participant_id, row.session_id], abs_tol=1e-9)


@settings(max_examples=15, deadline=None)
@given(text=st.text(alphabet="0123456789.,-+ my", max_size=7))
def test_whatever_is_written_as_age_is_a_plausible_age_or_has_a_reason_or_is_refused(text):
    with tempfile.TemporaryDirectory() as folder:
        small.write(Path(folder), small.merge(AGE=text))
        if sheet_years(text) > 120:
            with pytest.raises(DataError, match=r"ADNIMERGE.csv: median age is"):
                read_visits(Path(folder))
            return
        found = read_visits(Path(folder))
    for row in found.itertuples():
        missing = not text.strip() or text.strip() in NO_VALUE
        assert not math.isnan(row.baseline_age) or pd.notna(row.reason) or missing


def sheet_years(text):
    return years(pd.Series([text]))[0].iloc[0]


def test_dates_with_the_day_first_give_the_ages_of_those_with_the_month_first(tmp_path):
    for form in ("%d/%m/%Y", "%m/%d/%Y", "%d-%b-%Y"):
        table = small.merge(Years_bl=None, Month=None)
        table["EXAMDATE"] = pd.to_datetime(table["EXAMDATE"]).dt.strftime(form)
        later = pd.Timestamp(2006, 11, 28).strftime(form)
        table.loc[len(table)] = {**table.iloc[0], "VISCODE": "m06", "EXAMDATE": later}
        visits = read_visits(small.write(tmp_path / form[1:2] / form[4:5], table))
        assert visits["age_years"].round(2).tolist() == [71.5, 72.07, 72.52, 73.5], form


def test_people_in_small_letters_are_the_same_people(tmp_path):
    visits = read_visits(small.write(tmp_path, small.merge(PTID=small.PERSON.lower())))
    assert set(visits["participant_id"]) == {small.PERSON}
