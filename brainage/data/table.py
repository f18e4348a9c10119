"""The canonical table: one row a scan, the same columns for every cohort, and a reason beside every dropped row.

A person is (cohort, participant_id); a scan adds session_id and run. Text is pandas `string` with NA in memory and the
empty string in files; numbers are float64 with NaN; ages are years.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from brainage.data.files import as_text, read_table, read_tsv, write_atomically, write_table, write_tsv
from brainage.errors import DataError

__all__ = [
    "COLUMNS",
    "DROPPED_COLUMNS",
    "KEY",
    "PERSON",
    "SPLITS",
    "CohortTable",
    "finish_dropped",
    "finish_table",
    "person_keys",
    "person_numbers",
    "read_table",
    "read_tsv",
    "sample_numbers",
    "scan_keys",
    "validate",
    "write_atomically",
    "write_table",
    "write_tsv",
]

KEY = ["cohort", "participant_id", "session_id", "run"]
PERSON = KEY[:2]
SPLITS = ("train", "val", "test_internal", "test_external")
COLUMNS = [*KEY, "site", "age_years", "sex", "diagnosis", "visit_years", "split", "path"]
DROPPED_COLUMNS = [*KEY, "path", "reason"]
REQUIRED = [*PERSON, "age_years", "path"]
CODES = {"sex": ("F", "M"), "diagnosis": ("CN", "MCI", "AD", "other"), "split": SPLITS}
NUMBERS = ("age_years", "visit_years")
OLDEST_YEARS = 120.0
_CONTROL = re.compile(r"[\x00-\x1f]")


class CohortTable(NamedTuple):
    """`table` has COLUMNS and the cohort's extra ones, sorted by KEY; `dropped` has DROPPED_COLUMNS."""

    table: pd.DataFrame
    dropped: pd.DataFrame


def finish_table(raw: pd.DataFrame, *, source: str, dropped: pd.DataFrame | None = None) -> CohortTable:
    """The only door from a cohort reader to everything after it.

    `raw` holds one row a scan: participant_id, cohort, age_years and path are required, the other canonical columns are
    filled with NA where absent, unknown columns are kept. `source` is the file or folder that messages name; `dropped`
    are rows that the reader itself left out (a `reason` each, key columns as far as known).

    Rows without a person, path or possible age (0 < years <= 120) and exact duplicates go to `dropped`, each with its
    reason. Raises DataError on a missing column, an unknown sex, diagnosis or split code, a `/` in a key, two rows of
    one scan that differ, or a table of which nothing is left.

    >>> raw = pd.DataFrame({"cohort": "a", "participant_id": [7, 8], "age_years": ["23.5", 999], "path": ["x", "y"]})
    >>> table, dropped = finish_table(raw, source="participants.tsv")
    >>> table[["participant_id", "age_years"]].values.tolist(), dropped["reason"].tolist()
    ([['7', 23.5]], ['age_years 999 is outside 0 to 120 years'])
    """
    _refuse_missing_columns(raw, source)
    table = raw.reset_index(drop=True)
    ages = table["age_years"]
    table = _plain(table.assign(age_years=ages.map(_years).astype("float64")), source)
    reasons = _reasons(table, ages)
    kept = table[reasons.isna()]
    _refuse_codes(kept, source)
    duplicate = _duplicate_reasons(kept, source)
    reasons = reasons.fillna(duplicate)
    left_out = table.assign(reason=reasons)[reasons.notna()]
    every = finish_dropped(left_out) if dropped is None else finish_dropped(left_out, dropped)
    table = table[reasons.isna()]
    if table.empty:
        first = f"; first reason: {every['reason'].iloc[0]}" if len(every) else ""
        raise DataError(f"{source}: no usable scan: 0 rows kept, {len(every)} dropped{first}")
    table = table.sort_values(KEY, na_position="first", kind="stable", ignore_index=True)
    return CohortTable(table, every)


def finish_dropped(*frames: pd.DataFrame) -> pd.DataFrame:
    """All dropped rows, sorted, as DROPPED_COLUMNS of text, each on one line; DataError where a reason is missing."""
    rows = pd.concat([frame.reindex(columns=DROPPED_COLUMNS).astype(object) for frame in frames], ignore_index=True)
    rows = pd.DataFrame(
        {name: as_text(as_text(rows[name]).str.replace(_CONTROL, " ", regex=True)) for name in DROPPED_COLUMNS}
    )
    rows["reason"] = as_text(rows["reason"].str.split().str.join(" "))
    if rows["reason"].isna().any():
        key = "/".join(rows.loc[rows["reason"].isna(), KEY].iloc[0].fillna(""))
        raise DataError(f"dropped row {key}: expected a reason, found none; nothing is dropped without one")
    return rows.sort_values(DROPPED_COLUMNS, na_position="first", ignore_index=True)


def validate(table: pd.DataFrame, source: str) -> None:
    """Raise DataError unless `table` is what `finish_table` returns (columns, types, codes, ages, one row a scan)."""
    _refuse_missing_columns(table, source)
    for name in COLUMNS:
        wanted = "float64" if name in NUMBERS else "string"
        found = str(table[name].dtype) if name in table else "no such column"
        if found != wanted:
            raise DataError(f"{source}: column {name!r}: expected {wanted}, found {found}; use finish_table")
    finished = finish_table(table, source=source)
    if len(finished.dropped):
        row = finished.dropped.iloc[0]
        raise DataError(f"{source}: scan {'/'.join(row[KEY].fillna(''))}: {row['reason']}")


def scan_keys(table: pd.DataFrame) -> pd.Series:
    """`cohort/participant/session/run` of each row; missing parts are empty."""
    return _joined(table, KEY)


def person_keys(table: pd.DataFrame) -> pd.Series:
    """`cohort/participant` of each row."""
    return _joined(table, PERSON)


def sample_numbers(table: pd.DataFrame) -> np.ndarray:
    """uint64 [n] below 2**63: a number of each scan that depends on its key alone, never on its place in the table."""
    return _numbers(scan_keys(table))


def person_numbers(table: pd.DataFrame) -> np.ndarray:
    """uint64 [n] below 2**63: the same of each person's scans; their order has nothing to do with site or age."""
    return _numbers(person_keys(table))


def _numbers(keys: pd.Series) -> np.ndarray:
    digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys]
    return np.array([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=np.uint64)


def _refuse_missing_columns(raw: pd.DataFrame, source: str) -> None:
    present = [str(name) for name in raw.columns]
    repeated = sorted({name for name in present if present.count(name) > 1})
    if repeated:
        raise DataError(f"{source}: column {repeated[0]!r} is there {present.count(repeated[0])} times; keep one")
    for name in REQUIRED:
        if name not in present:
            near = difflib.get_close_matches(name, present, n=1, cutoff=0.0)
            hint = f"; the nearest one there is {near[0]!r}" if near else "; there are no columns"
            raise DataError(f"{source}: column {name!r} missing{hint}")


def _plain(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Canonical columns first, then the extra ones; every column `string` or float64."""
    columns: dict[str, pd.Series] = {}
    for name in [*COLUMNS, *(c for c in table.columns if c not in COLUMNS)]:
        if name not in table:
            missing = np.nan if name in NUMBERS else pd.NA
            columns[name] = pd.Series(missing, index=table.index, dtype="float64" if name in NUMBERS else "string")
        elif name == "visit_years":
            columns[name] = _visit_years(table, source)
        elif name in COLUMNS and name not in NUMBERS:
            text = as_text(table[name])
            columns[name] = text.mask(text == "NA", pd.NA) if name in CODES else text
        else:
            columns[name] = _number_or_text(table[name])
    return pd.DataFrame(columns)


def _number_or_text(column: pd.Series) -> pd.Series:
    """An extra column: float64 if pandas calls it numeric or every present value is a number, else text."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return pd.Series(column.to_numpy(dtype="float64", na_value=np.nan), index=column.index)
    present = column.dropna()
    if column.dtype == object and len(present) and present.map(lambda v: isinstance(v, int | float | np.number)).all():
        return column.map(_years).astype("float64")
    return as_text(column)


def _years(value: Any) -> float:
    """The number written in a cell, NaN where there is none."""
    text = "" if value is None or value is pd.NA else str(value)
    try:
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def _visit_years(table: pd.DataFrame, source: str) -> pd.Series:
    written = as_text(table["visit_years"])
    years = table["visit_years"].map(_years).astype("float64")
    bad = written.notna() & ~(np.isfinite(years) & (years >= 0)) & (written.str.lower() != "nan")
    for row in table.index[bad]:
        raise DataError(
            f"{source}: row {row + 1}: visit_years {written[row]!r}: expected years since the first visit, 0 or more"
        )
    return years


def _reasons(table: pd.DataFrame, ages: pd.Series) -> pd.Series:
    """Why each row cannot be used; NA where it can."""
    reasons = pd.Series(pd.NA, index=table.index, dtype="string")
    years = table["age_years"]
    written = as_text(ages)
    missing = written.isna() | (written.str.lower() == "nan")
    reasons[~((years > 0) & (years <= OLDEST_YEARS))] = "age_years " + written + " is outside 0 to 120 years"
    reasons[years.isna()] = "age_years '" + written + "' is not a number"
    reasons[missing] = "age_years missing"
    for name in ("path", "participant_id", "cohort"):
        reasons[table[name].isna()] = f"{name} missing"
    return reasons


def _refuse_codes(table: pd.DataFrame, source: str) -> None:
    for name, codes in CODES.items():
        for row in table.index[table[name].notna() & ~table[name].isin(codes)]:
            raise DataError(
                f"{source}: row {row + 1} (participant {table.loc[row, 'participant_id']}): {name} "
                f"{table.loc[row, name]!r}: expected one of {', '.join(codes)} or NA"
            )
    for name in KEY:
        for row in table.index[table[name].str.contains("/", regex=False).fillna(False)]:
            raise DataError(f"{source}: row {row + 1}: {name} {table.loc[row, name]!r}: a key may not hold '/'")


def _duplicate_reasons(table: pd.DataFrame, source: str) -> pd.Series:
    """A reason for each row that repeats an earlier one; DataError where two rows of one scan differ."""
    reasons = pd.Series(pd.NA, index=table.index, dtype="string")
    repeated = table.duplicated()
    reasons[repeated] = "exact duplicate of scan " + scan_keys(table[repeated])
    unique = table[~repeated]
    clashing = unique[unique.duplicated(KEY, keep=False)]
    if len(clashing):
        key = scan_keys(clashing).iloc[0]
        rows = clashing[scan_keys(clashing) == key]
        differing = [name for name in rows.columns if rows[name].nunique(dropna=False) > 1]
        found = "; ".join(f"{name}: {', '.join(map(str, rows[name].unique()[:3]))}" for name in differing)
        raise DataError(f"{source}: scan {key} has {len(rows)} rows that differ in {found}; keep the right one")
    return reasons


def _joined(table: pd.DataFrame, names: list[str]) -> pd.Series:
    parts = [table[name].astype("string").fillna("") for name in names]
    joined = parts[0].str.cat(parts[1:], sep="/")
    return joined.astype("string")
