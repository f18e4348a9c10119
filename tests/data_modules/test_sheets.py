"""One door for the text tables of all cohorts: encodings, separators, ages, dates, codes."""

from __future__ import annotations

import gzip
import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainage.errors import DataError
from data_modules.sheets import (
    columns,
    find_sheets,
    header,
    numbers,
    plain,
    read_sheet,
    refuse_months,
    sexes,
    years,
)

ROWS = {"id": ["a1", "a2"], "age": ["71.5", None]}


def write(folder, data: bytes, name: str = "sheet.csv"):
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"id,age\na1,71.5\na2,\n", "plain.csv"),
        (b"\xef\xbb\xbfid,age\r\na1,71.5\r\na2,n/a\r\n", "windows.csv"),
        (b"id;age\ra1;71.5\ra2;NA\r", "old_mac.csv"),
        (b" id \tage\n a1 \t 71.5 \n\na2\tNaN\n\t\n", "spaces.tsv"),
        (b'"id","age"\n"a1","71.5"\n"a2",""\n', "quoted.csv"),
        (b"id,age\na1,71.5\na2\n", "short_row.csv"),
        (gzip.compress(b"id,age\na1,71.5\na2,null\n", mtime=0), "packed.csv.gz"),
    ],
)
def test_one_table_in_seven_spellings_reads_alike(tmp_path, data, name):
    file = write(tmp_path, data, name)
    sheet = read_sheet(file)
    assert header(file) == list(ROWS)
    assert {column: [None if pd.isna(v) else v for v in sheet[column]] for column in sheet} == ROWS
    assert (sheet.dtypes == "string").all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; expected a table with a header"),
        (b"\n\n", "is empty"),
        (b"id,age,id\n1,2,3\n", "column 'id' is there 2 times"),
        (b"id,age\na1,71,5\n", "line 2 has 3 cells, its header 2; are there decimal commas"),
        (b"id,name\na1,Andr\xe9\n", "expected UTF-8 text, found byte 0xe9"),
    ],
)
def test_a_table_that_would_be_misread_is_refused_with_its_file(tmp_path, data, message):
    file = write(tmp_path, data)
    with pytest.raises(DataError, match=message) as refused:
        read_sheet(file)
    assert str(file) in str(refused.value)


def test_an_absent_and_a_truncated_file_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: file not found"):
        read_sheet(tmp_path / "none.csv")
    torn = write(tmp_path, gzip.compress(b"id,age\n" + b"a1,71.5\n" * 5000)[:-40], "torn.csv.gz")
    with pytest.raises(DataError, match=r"torn\.csv\.gz: not readable as a table"):
        read_sheet(torn)


def test_a_comma_or_a_line_end_inside_a_quoted_cell_ends_nothing(tmp_path):
    sheet = read_sheet(write(tmp_path, b'id,note\na1,"left, then\nright"\na2,"x,y"\n'))
    assert sheet["note"].tolist() == ["left, then\nright", "x,y"]


def test_separators_at_every_line_end_and_a_column_of_row_numbers_do_no_harm(tmp_path):
    sheet = read_sheet(write(tmp_path, b",id,age,\n0,a1,71.5,\n1,a2,,\n"))
    assert sheet[["id", "age"]].fillna("").to_numpy().tolist() == [["a1", "71.5"], ["a2", ""]]


def test_only_the_wanted_columns_are_read(tmp_path):
    file = write(tmp_path, b"id,age,x1,x2\na1,71.5,0,0\n")
    assert list(read_sheet(file, usecols=["age", "id"])) == ["id", "age"]
    assert list(read_sheet(file, usecols=lambda name: name.startswith("x"))) == ["x1", "x2"]


def test_columns_are_found_in_any_spelling_and_a_missing_one_is_named_with_its_nearest(tmp_path):
    file = tmp_path / "t.csv"
    known = {"sex": ("SEX_ID", "sex"), "age": ("AGE",), "site": ("SITE",)}
    names = ["Sex_ID (1=m, 2=f)", "sex", " age "]
    assert columns(names, known, file) == {"sex": "Sex_ID (1=m, 2=f)", "age": " age "}
    with pytest.raises(DataError, match=r"t\.csv: column Subject ID missing; did you mean 'Subject-IDs'"):
        columns(["Subject-IDs", "age"], {"person": ("Subject ID",)}, file, required=["person"])
    assert plain("Acq. Date") == plain("acq_date")


def test_sheets_are_found_by_their_columns_and_other_files_are_passed_over(tmp_path):
    (tmp_path / "tables" / "deep").mkdir(parents=True)
    wanted = write(tmp_path / "tables", b"RID;Age\n1;2\n", "any name.csv")
    write(tmp_path, b"RID\n1\n", "no_age.csv")
    write(tmp_path, b"\xff\xfe\x00", "noise.csv")
    write(tmp_path / "tables" / "deep", b"RID;Age\n1;2\n", "too_deep.csv")
    assert find_sheets(tmp_path, {"rid": ("RID",), "age": ("AGE",)}, ["rid", "age"]) == [wanted]


@given(st.floats(0.01, 110.0).map(lambda age: round(age, 2)))
def test_an_age_reads_alike_with_a_point_a_comma_a_unit_and_in_months(age):
    written = [f"{age}", f"{age}".replace(".", ","), f" {age} years ", f"{age}y"]
    found, reasons = years(pd.Series([*written, f"{age * 12:.8f} months"]))
    assert reasons.isna().all()
    assert found.tolist()[:4] == [age] * 4
    assert math.isclose(found.iloc[4], age, abs_tol=1e-6)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("60-65", "age '60-65' is a range"),
        ("60 to 65", "age '60 to 65' is a range"),
        ("89+", "age '89+' is a bound"),
        (">90", "age '>90' is a bound"),
        ("unknown", "age 'unknown' is not a number"),
    ],
)
def test_what_is_no_age_has_a_reason(written, reason):
    ages, reasons = years(pd.Series([written, "30"]))
    assert ages.isna().tolist() == [True, False]
    assert reasons.tolist() == [reason, pd.NA]


def test_a_column_of_months_is_refused_and_one_of_centenarians_is_not(tmp_path):
    refuse_months(pd.Series([101.0, 104.0, 119.0]), tmp_path)
    with pytest.raises(DataError, match="median age is 840: expected years; are these months or days"):
        refuse_months(pd.Series([700.0, 840.0, 900.0]), tmp_path / "t.csv")


def test_numbers_take_decimal_commas_and_nothing_else(tmp_path):
    assert numbers(pd.Series(["1,5", "-2", "1e3", ".5"])).tolist() == [1.5, -2.0, 1000.0, 0.5]
    assert numbers(pd.Series(["1,234,567", "0x10", "1 2", "inf", None], dtype="string")).isna().all()


def test_an_unknown_sex_code_names_its_row(tmp_path):
    codes = {"1": "M", "2": "F"}
    found = sexes(pd.Series(["1", "2.0", "Female", None]), tmp_path / "t.csv", codes)
    assert found.tolist() == ["M", "F", "F", pd.NA]
    with pytest.raises(DataError, match=r"t\.csv: row 2: sex '3': expected one of 1, 2, f, female, m, male"):
        sexes(pd.Series(["1", "3"]), tmp_path / "t.csv", codes)


def test_two_columns_of_one_name_must_say_the_same(tmp_path):
    known = {"age": ("age",)}
    same = write(tmp_path, b"id,Age,AGE\n1,30,30\n2,,\n", "same.csv")
    assert columns(header(same), known, same) == {"age": "Age"}
    other = write(tmp_path, b"id,Age,AGE\n1,30,30\n2,40,\n", "other.csv")
    assert find_sheets(tmp_path, known, ["age"]) == [other, same]  # never passed over in silence
    with pytest.raises(DataError, match=r"other\.csv: columns Age and AGE have one name and different cells"):
        columns(header(other), known, other)
    assert columns(header(other), {"id": ("ID",)}, other) == {"id": "id"}  # nobody asked for it


def test_decimal_commas_before_empty_cells_are_refused_and_commas_that_end_every_line_are_not(tmp_path):
    shifted = write(tmp_path, b"id,age,mmse,note\n1,71,28,\n2,71,5,,\n", "shifted.csv")
    with pytest.raises(DataError, match=r"shifted\.csv: line 3 has more cells than its header \(4\).*decimal commas"):
        read_sheet(shifted)
    habit = write(tmp_path, b"id,age\n1,71,\n,,\n2,72,\n", "habit.csv")
    assert read_sheet(habit)["age"].tolist() == ["71", "72"]
