"""Results as a long table, one number a row: the only thing that reports and studies read besides predictions.

`run` is the model's label, `n` counts people (scans are in the note), intervals are 95 % over people. A number that
could not be computed is a row with NaN and a note that says why, never an absent row. `note` is a list of phrases
joined by `; `; in a row about a part of a split, or about one of several ways, the first phrases say so: `site=Guys`,
`pair=CN-AD; predictor=gap`. PARTS are the words that may stand before the equals sign.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainage.data.table import SPLITS, write_atomically
from brainage.errors import DataError
from brainage.statistics.bootstrap import Interval

RESULT_COLUMNS = ["run", "cohort", "split", "task", "metric", "estimate", "low", "high", "n", "note"]
PARTS = (
    "site", "band", "sex", "group", "contrast", "pair", "predictor", "labels", "probe", "correction", "term", "ages",
    "after", "folds", "coverage", "subset",
)  # fmt: skip
INTERNAL, EXTERNAL = SCORED = ("test_internal", "test_external")
MEAN_PREDICTOR, CHANCE = "mean_predictor", "chance"  # what models are compared with, as names in `run`
FEWEST_PEOPLE = 5  # a part below this has no estimate and no ages: results leave the machine, single persons must not
EDGE = "(edge of the grid)"  # ending of the phrase on a penalty that a wider grid might have changed
_TEXT = ("run", "cohort", "split", "task", "metric", "note")
_NUMBERS = ("estimate", "low", "high")
_NOTHING = Interval(np.nan, np.nan, np.nan)


def result_row(
    run: str, cohort: str, split: str, task: str, metric: str, found: Interval, n: int, *notes: str
) -> dict[str, Any]:
    """One row; empty notes are left out."""
    note = "; ".join(phrase for phrase in notes if phrase)
    values = [run, cohort, split, task, metric, found.estimate, found.low, found.high, n, note]
    return dict(zip(RESULT_COLUMNS, values, strict=True))


def missing_row(run: str, cohort: str, split: str, task: str, metric: str, reason: str, *parts: str) -> dict[str, Any]:
    """The row of a number that could not be computed; scans (`cohort/person/...`) and paths in the reason are masked.
    `parts` are phrases such as `pair=CN-AD`.

    >>> missing_row("exp", "ixi", "test_internal", "age", "mae_years", "no vector, first ixi/IXI012/1/1")["note"]
    'not computed: no vector, first …'
    """
    masked = re.sub(r"\S+/\S*|\S*/\S+", "…", reason)
    return result_row(run, cohort, split, task, metric, _NOTHING, 0, *parts, f"not computed: {masked}")


def too_few_row(run: str, cohort: str, split: str, task: str, metric: str, n: int, part: str) -> dict[str, Any]:
    """The row of a part (`site=Guys`) of fewer than FEWEST_PEOPLE people: their number and nothing else."""
    reason = f"not shown: fewer than {FEWEST_PEOPLE} people"
    return result_row(run, cohort, split, task, metric, _NOTHING, n, part, reason)


def results_frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a checked frame: text, float64 and int64 (`n`) columns in the order of RESULT_COLUMNS."""
    frame = pd.DataFrame(list(rows), columns=RESULT_COLUMNS)
    frame = frame.astype({**dict.fromkeys(_TEXT, "string"), **dict.fromkeys(_NUMBERS, "float64"), "n": "int64"})
    validate_results(frame, "results")
    return frame


def part_of(note: str) -> tuple[str, str]:
    """(kind, name) of the first part that a row is about, ("", "") for the whole split.

    >>> part_of("site=Guys; 12 scans"), part_of("360 scans")
    (('site', 'Guys'), ('', ''))
    """
    return next(iter(parts_of(note).items()), ("", ""))


def parts_of(note: str) -> dict[str, str]:
    """Every part that a row is about: the phrases `word=name` at the start of its note, words of PARTS only.

    >>> parts_of("pair=CN-AD; predictor=gap; 80 people; alpha=3")
    {'pair': 'CN-AD', 'predictor': 'gap'}
    """
    found: dict[str, str] = {}
    for phrase in note.split("; "):
        kind, equals, name = phrase.partition("=")
        if not equals or kind not in PARTS:
            break
        found[kind] = name
    return found


def combine(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Several result frames as one; rows that are equal in every column (a shared baseline, numbers to nine decimals)
    are kept once.

    Raises DataError on two rows of one run, split, task, metric and part that differ.
    """
    rows = [row for frame in frames for row in frame[RESULT_COLUMNS].to_dict("records")]
    whole = pd.DataFrame(rows, columns=RESULT_COLUMNS)
    repeated = whole.round(dict.fromkeys(_NUMBERS, 9)).duplicated()  # parallel sums may differ in the last digits
    return results_frame(whole[~repeated].to_dict("records"))


def validate_results(frame: pd.DataFrame, source: str) -> None:
    """Raise DataError naming the row: empty text, unknown split, low above high, NaN without a note, repeated."""
    if list(frame.columns) != RESULT_COLUMNS:
        raise DataError(f"{source}: expected the columns {', '.join(RESULT_COLUMNS)}; found {', '.join(frame.columns)}")
    for row in frame.to_dict("records"):
        name = f"{source}: row {row['run']}/{row['split']}/{row['task']}/{row['metric']}"
        for column in ("run", "cohort", "task", "metric"):
            if pd.isna(row[column]) or not row[column]:
                raise DataError(f"{name}: {column} is empty")
        if pd.isna(row["split"]) or not set(row["split"].split("+")) <= set(SPLITS):
            raise DataError(f"{name}: expected a split of {', '.join(SPLITS)}, or several joined by '+'")
        if np.isnan(row["low"]) != np.isnan(row["high"]) or row["low"] > row["high"]:
            raise DataError(f"{name}: expected low <= high, found {row['low']} and {row['high']}")
        if np.isnan(row["estimate"]) and (pd.isna(row["note"]) or not row["note"]):
            raise DataError(f"{name}: an estimate of NaN needs a note that says why")
        if row["n"] < 0:
            raise DataError(f"{name}: expected n of 0 or more people, found {row['n']}")
    names = frame[["run", "cohort", "split", "task", "metric"]]
    names["part"] = [" ".join(map("=".join, parts_of(note).items())) for note in frame["note"].fillna("")]
    for index in frame.index[names.duplicated()]:
        raise DataError(f"{source}: two different rows of {'/'.join(map(str, names.loc[index]))}")


def write_results(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a CSV, whole or not at all; numbers with every digit, NaN as an empty cell."""
    validate_results(frame, str(path))
    write_atomically(path, lambda temporary: frame.to_csv(temporary, index=False, lineterminator="\n"))


def read_results(path: str | Path) -> pd.DataFrame:
    """Inverse of `write_results`; DataError naming the file when it is absent, torn or not a results table."""
    if not Path(path).is_file():
        raise DataError(f"{path}: file not found; `brainage evaluate` writes it")
    try:
        frame = pd.read_csv(
            path, dtype=dict.fromkeys(_TEXT, "string"), keep_default_na=False, na_values=dict.fromkeys(_NUMBERS, "")
        )
        frame = frame.astype({**dict.fromkeys(_NUMBERS, "float64"), "n": "int64"})
    except (ValueError, KeyError) as error:
        raise DataError(f"{path}: not readable as results ({' '.join(str(error).split())[:200]})") from error
    validate_results(frame, str(path))
    return frame
