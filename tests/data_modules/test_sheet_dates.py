"""Dates of a column: one order of day and month, nothing unreadable passed over."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from brainage.errors import DataError
from data_modules.sheet_dates import NO_YEAR, dates, label_dates

FILE = Path("visits.csv")


def read(*cells: str | None, **how) -> list[str]:
    column = pd.Series(cells, dtype="string", name="EXAMDATE")
    return dates(column, FILE, **how).dt.strftime("%Y-%m-%d").fillna("").tolist()


@pytest.mark.parametrize(
    "written",
    ["2006-10-30", "20061030", "2006-10-30T10:00:00", "2006/10/30", "10/30/2006", "10/30/06", "30/10/2006",
     "30.10.2006", "30-10-2006", "30-Oct-2006", "30 October 2006", "30OCT2006", "30/10/2006 12:30"],
)  # fmt: skip
def test_one_day_in_every_spelling(written):
    assert read(written, None) == ["2006-10-30", ""]


def test_one_cell_decides_for_the_whole_column():
    assert read("03/04/2006", "25/04/2006") == ["2006-04-03", "2006-04-25"]
    assert read("03/04/2006", "04/25/2006") == ["2006-03-04", "2006-04-25"]
    assert read("03/04/2006") == ["2006-03-04"]  # nothing decides: as LONI writes
    assert read("03.04.2006") == ["2006-04-03"]


def test_cells_that_decide_for_different_orders_are_refused():
    with pytest.raises(DataError, match=r"visits\.csv: EXAMDATE: row 2 has the day first \('25/3/2006'\), row 3 the"):
        read("1/1/2006", "25/3/2006", "3/25/2006")


@pytest.mark.parametrize("word", ["soon", "2006-13-01", "31/11/2006", "9998-01-01", "0002-01-01", "1112001", "2006"])
def test_what_is_no_date_names_its_row(word):
    with pytest.raises(DataError, match=rf"visits\.csv: row 2: EXAMDATE '{word}': expected a date"):
        read("2006-10-30", word)


def test_dates_that_mean_none_are_none():
    assert read("9999-12-31", "0001-01-01", "1/1/1900", "2037-07-07", "10:30:00") == [""] * 5
    assert read("1900-01-01", "9999-12-31", placeholders=NO_YEAR) == ["1900-01-01", ""]  # BIDS shifts dates that far


def test_a_label_need_not_be_a_date():
    found = label_dates(pd.Series(["20110602", "2011-06-02", "M012", "20111399", None], dtype="string"))
    assert (found[:2] == pd.Timestamp(2011, 6, 2)).all()
    assert found[2:].isna().all()
