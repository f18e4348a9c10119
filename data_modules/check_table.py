"""Checks of a cohort's table: columns, keys, units, people over their visits, rows left out, the published split."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import PurePosixPath

import pandas as pd

from brainage.data.conversion import OUTCOMES
from brainage.data.reasons import count_kinds
from brainage.data.table import DROPPED_COLUMNS, OLDEST_YEARS, PERSON, person_keys, scan_keys, validate
from data_modules.check_inspected import Inspected, WrongError

PUBLISHED_SPLITS = ("train", "test_internal", "test_external")
SAME_BIRTH_YEARS = 1.0  # ages are often written in whole years: how far age minus visit_years may wander in a person
LIMITS = {  # extra columns whose name means the same in every cohort -> least and most
    "field_tesla": (0.1, 15.0), "tiv_ml": (600.0, 2600.0), "csf_ml": (0.0, 2000.0), "gm_ml": (100.0, 1500.0),
    "wm_ml": (100.0, 1200.0), "mmse": (0.0, 30.0), "cdr": (0.0, 3.0), "apoe4": (0.0, 2.0),
    "education_years": (0.0, 40.0), "days_to_clinical": (0.0, 36525.0), "visit_years": (0.0, 100.0),
}  # fmt: skip


def lazy(cohort: Inspected) -> str:
    if cohort.opened:
        raise WrongError(
            f"table() or official_split() opened {len(cohort.opened)} arrays, images or members of zips, first "
            f"{cohort.opened[0]}"
        )
    return "the table opens no array, image or member of a zip"


def columns(cohort: Inspected) -> str:
    table = cohort.table.table
    validate(table, f"table of {cohort.reader.name}")
    for key, path in zip(scan_keys(table), table["path"], strict=True):
        if _leaves_the_root(path):
            raise WrongError(f"scan {key}: path {path!r}: expected a locator inside the cohort's root")
    filled = ", ".join(name for name in table.columns if table[name].notna().all())
    return f"complete columns: {filled}"


def unique(cohort: Inspected) -> str:
    keys = scan_keys(cohort.table.table)
    for key in keys[keys.duplicated()]:
        raise WrongError(f"scan {key} has more than one row")
    paths = cohort.table.table["path"]
    for path in paths[paths.duplicated()]:
        raise WrongError(f"{path} belongs to scans {' and '.join(keys[paths == path])}")
    return f"{len(keys)} keys, {paths.nunique()} locators"


def ages(cohort: Inspected) -> str:
    years = cohort.table.table["age_years"]
    if not ((years > 0) & (years <= OLDEST_YEARS)).all():
        raise WrongError(f"age_years from {years.min():g} to {years.max():g}: expected years; months or days?")
    refused = cohort.table.dropped["reason"].str.contains("age_years .* is outside", regex=True).sum()
    if refused > len(years):
        raise WrongError(f"{refused} scans left out for their age, {len(years)} kept: are the ages months or days?")
    return f"{years.min():.1f} to {years.max():.1f} years, median {years.median():.1f}"


def units(cohort: Inspected) -> str:
    """Columns that several cohorts share mean the same everywhere, so their values must lie where they can."""
    table = cohort.table.table
    keys = scan_keys(table)
    for name, (least, most) in LIMITS.items():
        if name not in table:
            continue
        if not pd.api.types.is_float_dtype(table[name].dtype):
            raise WrongError(
                f"column {name}: expected numbers, found {table[name].dtype}; first {table[name].iloc[0]!r}"
            )
        odd = table[name].notna() & ~table[name].between(least, most)
        for row in table.index[odd]:
            raise WrongError(
                f"scan {keys[row]}: {name} {table.loc[row, name]:g}: expected {least:g} to {most:g}; another unit?"
            )
    if "mci_outcome" in table:
        written = table["mci_outcome"].notna()
        for row in table.index[written & ~table["mci_outcome"].isin(OUTCOMES)]:
            raise WrongError(f"scan {keys[row]}: mci_outcome {table.loc[row, 'mci_outcome']!r}: expected {OUTCOMES}")
        for row in table.index[written & ~table["diagnosis"].eq("MCI").fillna(False)]:
            raise WrongError(f"scan {keys[row]}: mci_outcome of a visit whose diagnosis is not MCI")
    known = [name for name in LIMITS if name in table]
    return f"in range: {', '.join(known)}" if known else "no shared extra columns"


def people(cohort: Inspected) -> str:
    """One person over several visits: one sex, and ages that go with time and with the order of the sessions."""
    table = cohort.table.table
    who = person_keys(table)
    for person, kinds in table.groupby(who)["sex"].nunique().items():
        if kinds > 1:
            raise WrongError(f"person {person}: sex changes from visit to visit")
    entry = table["age_years"] - table["visit_years"]
    wander = entry.groupby(who).max() - entry.groupby(who).min()
    for person in wander.index[wander > SAME_BIRTH_YEARS]:
        rows = table[who == person]
        raise WrongError(
            f"person {person}: ages {_listed(rows['age_years'])} at visit_years {_listed(rows['visit_years'])}: "
            f"expected ages that grow with the years, to {SAME_BIRTH_YEARS:g} year"
        )
    repeated = table[who.duplicated(keep=False)]
    for person, rows in repeated.groupby(who[repeated.index]):
        _refuse_backwards(str(person), rows)
    diagnoses = table["diagnosis"].value_counts()
    counts = ", ".join(f"{name} {count}" for name, count in diagnoses.items()) or "no diagnosis"
    return f"{repeated['participant_id'].nunique()} of {who.nunique()} people scanned more than once; {counts}"


def left_out(cohort: Inspected) -> str:
    dropped = cohort.table.dropped
    if list(dropped.columns) != DROPPED_COLUMNS:
        raise WrongError(f"dropped rows: expected columns {DROPPED_COLUMNS}, found {list(dropped.columns)}")
    silent = dropped["reason"].isna() | (dropped["reason"].str.strip() == "")
    for key in scan_keys(dropped[silent]):
        raise WrongError(f"dropped scan {key} has no reason")
    nobody = dropped["participant_id"].isna() & dropped["path"].isna()
    for reason in dropped.loc[nobody, "reason"]:
        raise WrongError(f"a dropped row names neither a person nor a file ({reason}): nobody can find it")
    for path in dropped["path"].dropna():
        if _leaves_the_root(path):
            raise WrongError(f"dropped path {path!r}: expected a locator inside the cohort's root")
    absent = cohort.reader.without_scan()
    both = set(absent) & set(cohort.table.table["participant_id"])
    if both:
        raise WrongError(f"{min(both)} has a scan in the table and is listed as never scanned")
    found = "; ".join(f"{count} x {kind}" for kind, count in count_kinds(dropped["reason"])[:3]) or "nobody"
    return found + (f"; {len(absent)} people never scanned so" if absent else "")


def split(cohort: Inspected) -> str:
    published = cohort.split
    if published is None:
        return "none published"
    for name in published.loc[~published["split"].isin(PUBLISHED_SPLITS), "split"]:
        raise WrongError(f"official split {name!r}: expected one of {', '.join(PUBLISHED_SPLITS)}")
    who = person_keys(published)
    for person in who[who.duplicated()]:
        raise WrongError(f"person {person} is in the official split more than once")
    absent = set(person_keys(cohort.table.table)) - set(who)
    if absent:
        raise WrongError(f"{len(absent)} people of the table are in no official split, first {min(absent)}")
    counts = cohort.table.table.merge(published, on=PERSON, suffixes=("_", ""))["split"].value_counts()
    return ", ".join(f"{name} {counts.get(name, 0)}" for name in PUBLISHED_SPLITS)


TABLE_CHECKS: dict[str, Callable[[Inspected], str]] = {
    "lazy": lazy,
    "columns": columns,
    "unique": unique,
    "ages": ages,
    "units": units,
    "people": people,
    "left out": left_out,
    "split": split,
}


def _refuse_backwards(person: str, rows: pd.DataFrame) -> None:
    """Sessions whose labels differ in one number (m06, m12; d0129, d0757) are in that number's order."""
    shapes = rows["session_id"].str.replace(r"\d+", "#", regex=True)
    if shapes.isna().any() or shapes.nunique() > 1 or shapes.iloc[0].count("#") != 1:
        return
    numbers = rows["session_id"].map(lambda label: int(re.findall(r"\d+", label)[0]))
    ordered = rows.assign(number=numbers).sort_values(["number", "age_years"])
    for (_, before), (_, after) in itertools.pairwise(ordered.iterrows()):
        if after["number"] > before["number"] and after["age_years"] < before["age_years"]:
            raise WrongError(
                f"person {person}: {before['age_years']:g} years old in session {before['session_id']}, "
                f"{after['age_years']:g} in {after['session_id']}"
            )


def _leaves_the_root(path: str) -> bool:
    return PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts


def _listed(values: pd.Series) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
