"""Dates as tables write them: the order of day and month is that of a whole column, never of one cell."""

from __future__ import annotations

import calendar
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.errors import DataError

# "no date" of exports and databases; those of 1900 to 2037 are UK Biobank's special dates
NO_YEAR = ("9999-12-31", "9999-09-09", "0001-01-01", "0000-00-00")
PLACEHOLDERS = (
    *NO_YEAR, "1900-01-01", "1901-01-01", "1902-02-02", "1903-03-03", "1909-09-09", "2037-07-07",
)  # fmt: skip
FIRST_YEAR, LAST_YEAR = 1700, 2200  # BIDS datasets shift dates to before 1925 on purpose
_TIME = r"(?:[T_ ]+\d.*)?$"  # of day, passed over
_YEAR_FIRST = rf"^(?P<year>\d{{4}})(?P<sign>[-/.]?)(?P<month>\d{{1,2}})(?P=sign)(?P<day>\d{{1,2}}){_TIME}"
_NUMBERS = rf"^(?P<one>\d{{1,2}})(?P<sign>[-/.])(?P<two>\d{{1,2}})(?P=sign)(?P<year>\d{{4}}|\d{{2}}){_TIME}"
_WORD = rf"^(?P<day>\d{{1,2}})[-/. ]?(?P<month>[A-Za-z]{{3,9}})\.?[-/. ]?(?P<year>\d{{4}}|\d{{2}}){_TIME}"
_ONLY_TIME = r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?"
_MONTHS = {name[:size].lower(): float(number) for number, name in enumerate(calendar.month_name) if name
           for size in range(3, len(name) + 1)}  # fmt: skip


def dates(column: pd.Series, file: Path, *, placeholders: tuple[str, ...] = PLACEHOLDERS) -> pd.Series:
    """datetime64[ns] of 2011-03-25, 20110325, 25-Mar-2011, 3/25/2011, 25/3/2011 and 25.3.2011; times are passed over.

    A column of numbers is day first where a first part of it is above 12, month first where a second part is; where
    nothing decides it is month first as LONI writes, or day first if all have dots. NaT where nothing is written, for
    `placeholders` (dates that mean "none") and for a time of day alone. Raises DataError naming file, row and value of
    what else is no date between 1700 and 2200, and of two cells that decide for different orders.

    >>> found = dates(pd.Series(["2011-03-25", "25/3/2011", "4/3/2011", "30-Oct-2006", "9999-12-31"]), Path("a.csv"))
    >>> found.dt.strftime("%d.%m.%Y").tolist()
    ['25.03.2011', '25.03.2011', '04.03.2011', '30.10.2006', nan]
    """
    text = column.astype("string").str.strip()
    once = text.dropna().drop_duplicates()  # half a million rows hold some thousand days
    found = _read_once(once, column, file, placeholders)
    return text.map(dict(zip(once, found, strict=True))).astype("datetime64[ns]")


def label_dates(labels: pd.Series) -> pd.Series:
    """Dates of labels like 20110602 or 2011-06-02, NaT for others: a label need not be a date."""
    return _of_parts(_year_first(labels.where(labels.str.fullmatch(r"\d{4}-?\d{2}-?\d{2}").fillna(False))))


def _read_once(text: pd.Series, column: pd.Series, file: Path, placeholders: tuple[str, ...]) -> pd.Series:
    parts = _by_numbers(text, file).fillna(_by_word(text)).fillna(_year_first(text))
    found = _of_parts(parts)
    none = _written(parts).isin(placeholders) | text.str.fullmatch(_ONLY_TIME).fillna(False).astype(bool)
    for row in text.index[text.notna() & found.isna() & ~none]:
        raise DataError(
            f"{file}: row {row + 1}: {column.name or 'date'} {column[row]!r}: expected a date like 2011-03-25, "
            f"{FIRST_YEAR} to {LAST_YEAR}, or nothing"
        )
    return found.mask(none)


def _by_numbers(text: pd.Series, file: Path) -> pd.DataFrame:
    cells = text.str.extract(_NUMBERS)
    one, two = (pd.to_numeric(cells[name]).astype("float64") for name in ("one", "two"))
    above_one, above_two = text.index[one > 12], text.index[two > 12]
    if len(above_one) and len(above_two):
        day, month = above_one[0], above_two[0]
        raise DataError(
            f"{file}: {text.name or 'dates'}: row {day + 1} has the day first ({text[day]!r}), row {month + 1} the "
            f"month ({text[month]!r}): expected one order; write dates like 2011-03-25"
        )
    dotted = cells["sign"].dropna().eq(".").all()
    day_first = len(above_one) > 0 or (dotted and not len(above_two))
    day, month = (one, two) if day_first else (two, one)
    return pd.DataFrame({"year": _four_digits(cells["year"]), "month": month, "day": day})


def _by_word(text: pd.Series) -> pd.DataFrame:
    cells = text.str.extract(_WORD)
    month = cells["month"].str.lower().map(_MONTHS).astype("float64")
    day = pd.to_numeric(cells["day"]).astype("float64")
    return pd.DataFrame({"year": _four_digits(cells["year"]), "month": month, "day": day})


def _year_first(text: pd.Series) -> pd.DataFrame:
    cells = text.astype("string").str.extract(_YEAR_FIRST)
    compact = cells["sign"].eq("").fillna(False) & (cells["month"] + cells["day"]).str.len().ne(4).fillna(True)
    cells = cells[["year", "month", "day"]].apply(lambda part: pd.to_numeric(part).astype("float64"))
    return cells.mask(compact.astype(bool))


def _four_digits(years: pd.Series) -> pd.Series:
    """Of two digits 69 to 99 are of the last century, as strptime has it."""
    number = pd.to_numeric(years).astype("float64")
    short = years.str.len().eq(2).fillna(False).astype(bool)
    return number.mask(short, number + np.where(number >= 69, 1900, 2000))


def _of_parts(parts: pd.DataFrame) -> pd.Series:
    inside = parts["year"].between(FIRST_YEAR, LAST_YEAR)
    return pd.to_datetime(parts.where(inside), errors="coerce").astype("datetime64[ns]")


def _written(parts: pd.DataFrame) -> pd.Series:
    """2011-03-25, also of days that no calendar has; empty where a part is missing."""
    known = parts.notna().all(axis=1)
    words = [f"{y:04.0f}-{m:02.0f}-{d:02.0f}" for y, m, d in parts[known].itertuples(index=False)]
    return pd.Series(words, index=parts.index[known], dtype=object).reindex(parts.index).fillna("")
