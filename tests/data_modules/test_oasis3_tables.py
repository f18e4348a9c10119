"""The tables of OASIS-3 in their releases and spellings, each fault with its reason, and the one rule of diagnosis."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainage.errors import DataError
from data_modules.oasis3 import OASIS3
from data_modules.oasis3_diagnosis import diagnose
from data_modules.oasis3_tables import find_tables, read_people, read_scanners, read_visits
from data_modules.sheets import MISSING
from tests.data_modules import small_oasis3 as small


def people_of(root):
    return read_people(find_tables(root), root)


def visits_of(root):
    return read_visits(find_tables(root))


# Diagnosis


@pytest.mark.parametrize(
    ("visit", "code"),
    [
        ({"normcog": 1}, "CN"),
        ({"normcog": 1, "cdr": 0.5}, "CN"),
        ({"normcog": 1, "dx1": "AD Dementia"}, "CN"),  # the form decides, not the free text
        ({"normcog": 1, "cdr": 1}, "other"),
        ({"mciamem": 1}, "MCI"),
        ({"mciaplus": 1, "cdr": 0}, "MCI"),
        ({"mcinon1": 1}, "MCI"),
        ({"mcinon2": 1}, "MCI"),
        ({"mciamem": 1, "mciaplus": 1}, "MCI"),
        ({"impnomci": 1}, "other"),
        ({"demented": 1, "probad": 1}, "AD"),
        ({"demented": 1, "possad": 1, "possadif": 1}, "AD"),
        ({"demented": 1, "alzdis": 1, "alzdisif": 1}, "AD"),
        ({"demented": 1, "possad": 1, "possadif": 2}, "other"),
        ({"demented": 1, "probad": 1, "probadif": 3}, "other"),
        ({"demented": 1, "probad": 0, "alzdis": 1}, "AD"),
        ({"demented": 1}, "other"),
        ({"demented": 1, "probad": 1, "cdr": 0}, "other"),
        ({"demented": 1, "normcog": 1}, "other"),
        ({"mciamem": 1, "impnomci": 1}, "other"),
        ({"normcog": 0, "demented": 0, "dx1": "AD Dementia"}, "AD"),
        ({"probad": 1}, None),  # a cause without a state says nothing
        ({"dx1": "Cognitively normal"}, "CN"),
        ({"dx1": "No dementia"}, "CN"),
        ({"dx1": "AD dem w/depresss- not contribut"}, "AD"),
        ({"dx1": "AD dem Language dysf with"}, "AD"),
        ({"dx1": "DAT"}, "AD"),
        ({"dx1": "AD dem cannot be primary"}, "other"),
        ({"dx1": "uncertain dementia"}, "other"),
        ({"dx1": "0.5 in memory only"}, "other"),
        ({"dx1": "Non AD dem- Other primary"}, "other"),
        ({"dx1": "uncertain- possible NON AD dem"}, "other"),
        ({"dx1": "Vascular Demt- primary"}, "other"),
        ({"dx1": "Incipient demt PTP"}, "other"),
        ({"dx1": "."}, None),
        ({"dx1": ".", "cdr": 0.0}, "CN"),
        ({"cdr": 0.5}, "other"),
        ({"cdr": 2.0}, "other"),
        ({"cdr": 7.0}, None),
        ({}, None),
    ],
)
def test_the_rule_of_diagnosis(visit, code):
    assert diagnose(visit).code == code


def test_a_contradiction_says_what_contradicts_what():
    assert diagnose({"normcog": 1, "cdr": 2.0}).detail == "contradiction: NORMCOG and CDR 2"
    assert diagnose({"mciaplus": 1, "demented": 1}).detail == "contradiction: MCI and DEMENTED"


def test_forms_of_one_day_that_differ_are_other(tmp_path):
    d1 = small.form_d1()
    small.write_tables(tmp_path, UDSd1_diagnoses=pd.concat([d1, d1.iloc[[0]].assign(NORMCOG=0, DEMENTED=1)]))
    visits, left_out = visits_of(tmp_path)
    first = visits.iloc[0]
    assert (first["participant_id"], first["day"], first["diagnosis"]) == ("OAS30001", 0.0, "other")
    assert first["diagnosis_detail"] == "contradiction: two forms of one day differ"
    assert left_out.empty


def test_codes_of_no_form_count_as_empty_cells(tmp_path):
    d1 = small.form_d1().astype(object)
    d1.loc[0, "NORMCOG"] = 2
    b4 = small.form_b4().astype(object)
    b4.loc[0, ["CDRTOT", "dx1", "MMSE"]] = [9, ".", 97]
    visits, _ = visits_of(small.write_tables(tmp_path, UDSd1_diagnoses=d1, UDSb4_cdr=b4))
    assert pd.isna(visits["diagnosis"][0])
    assert visits[["cdr", "mmse"]].iloc[0].isna().all()
    table = OASIS3(small.write_images(tmp_path), "head").table().table
    assert pd.isna(table["diagnosis"][0])  # the next visit that says something is 571 days away


# Releases


def test_the_older_exports_are_read(tmp_path):
    adrc = pd.DataFrame(
        {
            "ADRC_ADRCCLINICALDATA ID": ["OAS30001_ClinicalData_d0000", "OAS30001_ClinicalData_d0700",
                                         "OAS30002_ClinicalData_d0010", "OAS30003_ClinicalData_d0100"],
            "Subject": ["OAS30001", "OAS30001", "OAS30002", "OAS30003"], "Date": "", "Age": "",
            "mmse": [29, 26, 20, 28], "ageAtEntry": [65.1496, 65.1496, 67.21, 58.79], "cdr": [0, 0.5, 1, 0],
            "dx1": ["Cognitively normal", "uncertain dementia", "AD Dementia", "Cognitively normal"],
            "apoe": [23, 23, 34, ""],
        }
    )  # fmt: skip
    subjects = pd.DataFrame({"Subject": list(small.SESSIONS), "M/F": ["F", "M", "F"], "Education": [12, 18, 16]})
    sessions = pd.DataFrame({"MR ID": ["OAS30001_MR_d0129", "OAS30002_MR_d0000"], "Scanner": ["3.0T", "1.5T"]})
    root = small.write_images(tmp_path)
    for name, table in (("ADRC_Clinical_Data", adrc), ("Subjects", subjects), ("MR_Sessions", sessions)):
        table.to_csv(root / f"{name}.csv", index=False)
    table, dropped = OASIS3(root, "head").table()
    assert table["sex"].tolist() == ["F", "F", "M", "F"]
    assert table["diagnosis"].fillna("").tolist() == ["CN", "other", "AD", ""]  # it has no code of MCI
    assert table["site"].tolist() == ["3T", "OASIS3", "1.5T", "OASIS3"]
    assert table["education_years"].tolist() == [12.0, 12.0, 18.0, 16.0]
    assert table["apoe4"].fillna(-1).tolist() == [0.0, 0.0, 1.0, -1.0]
    assert dropped.empty


def test_tables_among_images_and_of_other_kinds_are_left_alone(tmp_path):
    small.write_cohort(tmp_path)
    small.demographics().assign(AgeatEntry="1").to_csv(tmp_path / "OAS30001_MR_d0129" / "notes.csv", index=False)
    (tmp_path / "simulation").mkdir()
    small.demographics().to_csv(tmp_path / "simulation" / "truth.csv", index=False)
    (tmp_path / "garbage.csv").write_bytes(b"\xff\xfe\x00 no table")
    pd.DataFrame({"OASISID": ["OAS30001"], "BILLS": [0]}).to_csv(tmp_path / "OASIS3_UDSb7_faq_fas.csv", index=False)
    assert [table.path for table in find_tables(tmp_path)] == [
        "OASIS3_UDSb4_cdr.csv", "OASIS3_UDSd1_diagnoses.csv", "OASIS3_demographics.csv",
    ]  # fmt: skip


def test_field_strengths_are_read_in_both_spellings(tmp_path):
    pd.DataFrame(
        {"label": ["OAS30001_MR_d0001", "OAS30002_MR_d0001"], "MagneticFieldStrength": ["1.5", "3.0T"]}
    ).to_csv(tmp_path / "a.csv", index=False)
    assert read_scanners(find_tables(tmp_path))["field_tesla"].tolist() == [1.5, 3.0]


# Faults


def test_without_ages_the_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no readable table with ages at entry .*OASIS3_demographics.csv"):
        OASIS3(small.write_cohort(tmp_path, demographics=None), "head").table()
    (tmp_path / "OASIS3_demographics.csv").touch()
    with pytest.raises(DataError, match="no readable table with ages at entry"):
        OASIS3(tmp_path, "head").table()


def test_a_table_of_nobody_is_named(tmp_path):
    with pytest.raises(DataError, match=r"OASIS3_demographics.csv: holds no person"):
        OASIS3(small.write_cohort(tmp_path, demographics=small.demographics().iloc[:0]), "head").table()


def test_unknown_codes_of_sex_are_named_with_their_row(tmp_path):
    with pytest.raises(DataError, match=r"OASIS3_demographics.csv: row 2: sex '3'"):
        people_of(small.write_tables(tmp_path, demographics=small.demographics().assign(GENDER=["2", "3", "2", "1"])))


def test_ages_in_months_are_refused(tmp_path):
    table = small.demographics().assign(AgeatEntry=["782", "807", "705", "846"])
    with pytest.raises(DataError, match=r"median age is .* months or days"):
        people_of(small.write_tables(tmp_path, demographics=table))


@pytest.mark.parametrize(
    ("age", "reason"),
    [
        ("60-65", "age '60-65' is a range"),
        ("89+", "age '89+' is a bound"),
        ("old", "age 'old' is not a number"),
        ("", "age_years missing"),
        ("-4", "age at entry -4 is not above 0"),
    ],
)
def test_an_age_that_is_none_drops_the_sessions_with_its_reason(tmp_path, age, reason):
    table = small.demographics().assign(AgeatEntry=[age, "67.21", "58.79", "70.5"])
    found, dropped = OASIS3(small.write_cohort(tmp_path, demographics=table), "head").table()
    assert found["participant_id"].tolist() == ["OAS30002", "OAS30003"]
    assert dropped["session_id"].tolist() == ["d0129", "d0757"]
    assert dropped["reason"].str.startswith(reason).all()


def test_repeated_rows_are_listed_and_contradictions_drop_the_person(tmp_path):
    table = small.demographics()
    rows = pd.concat([table, table.iloc[[1]], table.iloc[[2]].assign(AgeatEntry="61")])
    reader = OASIS3(small.write_cohort(tmp_path, demographics=rows), "head")
    found, dropped = reader.table()
    assert found["participant_id"].tolist() == ["OAS30001", "OAS30001", "OAS30002"]
    assert dropped[["participant_id", "reason"]].values.tolist() == [
        ["OAS30002", "repeated row of OAS30002, the first is kept"],
        ["OAS30003", "rows of the demographic tables disagree: age_entry 58.79 and 61.0"],
        ["OAS30003", "no usable row in the demographic tables"],
    ]
    assert reader.without_scan() == ["OAS30004"]


def test_rows_of_nobody_are_listed(tmp_path):
    table = small.demographics().assign(OASISID=["OAS30001", "OAS30002", "OAS30003", "total"])
    visits = small.form_b4().assign(OASISID=["?", "OAS30001", "OAS30002", "OAS30003"], OASIS_session_label="")
    _, dropped = OASIS3(small.write_cohort(tmp_path, demographics=table, UDSb4_cdr=visits), "head").table()
    assert dropped[["path", "reason"]].values.tolist() == [
        ["OASIS3_UDSb4_cdr.csv", "clinical visit of nobody: no OASIS-3 number"],
        ["OASIS3_demographics.csv", "'total' is no OASIS-3 number"],
    ]


def test_a_clinical_visit_before_entry_or_without_a_day_is_listed_and_not_joined(tmp_path):
    b4 = small.form_b4().assign(days_to_visit=[-12, 700, 10, 100], OASIS_session_label="")
    d1 = small.form_d1().astype(object)
    d1.loc[0, ["days_to_visit", "OASIS_session_label"]] = ["soon", ""]
    table, dropped = OASIS3(small.write_cohort(tmp_path, UDSb4_cdr=b4, UDSd1_diagnoses=d1), "head").table()
    assert pd.isna(table["diagnosis"][0])
    assert dropped[["participant_id", "reason"]].values.tolist() == [
        ["OAS30001", "clinical visit 12 days before entry"],
        ["OAS30001", "clinical visit without a day: 'soon'"],
    ]


def test_the_day_is_taken_from_the_label_where_its_column_is_missing(tmp_path):
    b4 = small.form_b4().drop(columns="days_to_visit")
    d1 = small.form_d1().drop(columns="days_to_visit")
    visits, left_out = visits_of(small.write_tables(tmp_path, UDSb4_cdr=b4, UDSd1_diagnoses=d1))
    assert visits["day"].tolist() == [0.0, 700.0, 10.0, 100.0]
    assert left_out.empty


# Spellings: whatever people and exports do to a table, the same people come out

spelling = st.fixed_dictionaries(
    {
        "separator": st.sampled_from([",", ";", "\t"]),
        "bom": st.booleans(),
        "line_end": st.sampled_from(["\n", "\r\n", "\r"]),
        "comma": st.booleans(),
        "sex": st.sampled_from(
            [{"1": "1", "2": "2"}, {"1": "M", "2": "F"}, {"1": "male", "2": "Female"}, {"1": "1.0", "2": "2.0"}]
        ),
        "order": st.permutations(range(7)),
        "upper": st.booleans(),
    }
)  # fmt: skip


def write_spelled(folder, table, how):
    table = table.assign(GENDER=table["GENDER"].map(how["sex"])).iloc[:, list(how["order"])]
    if how["comma"] and how["separator"] != ",":
        table = table.assign(AgeatEntry=table["AgeatEntry"].str.replace(".", ",", regex=False))
    if how["upper"]:
        table.columns = [name.upper() for name in table.columns]
    text = table.to_csv(index=False, sep=how["separator"], lineterminator=how["line_end"])
    name = "demographics.tsv" if how["separator"] == "\t" else "demographics.csv"
    (folder / name).write_bytes((b"\xef\xbb\xbf" if how["bom"] else b"") + text.encode())


@settings(max_examples=25, deadline=None)
@given(how=spelling, ages=st.lists(st.integers(4000, 9900), min_size=4, max_size=4))
def test_people_are_the_same_in_every_spelling(tmp_path_factory, how, ages):
    folder = tmp_path_factory.mktemp("spelled")
    table = small.demographics().assign(AgeatEntry=[f"{age / 100:.2f}" for age in ages])
    write_spelled(folder, table, how)
    people, left_out = people_of(folder)
    assert people["participant_id"].tolist() == table["OASISID"].tolist()
    np.testing.assert_allclose(people["age_entry"], np.array(ages) / 100)
    assert people["sex"].tolist() == ["F", "M", "F", "M"]
    assert people["apoe4"].fillna(-1).tolist() == [0.0, 1.0, -1.0, -1.0]
    assert left_out.empty


@settings(max_examples=25, deadline=None)
@given(cells=st.lists(st.text("0123456789.,-+<>mMFNAx ", max_size=6), min_size=4, max_size=4))
def test_no_cell_of_age_makes_a_person_vanish(tmp_path_factory, cells):
    folder = tmp_path_factory.mktemp("cells")
    table = small.demographics().assign(AgeatEntry=cells)
    table.to_csv(folder / "demographics.csv", index=False, sep=";")
    try:
        people, left_out = people_of(folder)
    except DataError as error:
        if "months" in str(error):  # a whole column of large numbers
            return
        raise
    assert set(people["participant_id"]) | set(left_out["participant_id"].dropna()) == set(table["OASISID"])
    for row, cell in zip(people.itertuples(), cells, strict=True):
        assert cell.strip() in ("", *MISSING) or pd.notna(row.age_entry) or pd.notna(row.age_reason)
