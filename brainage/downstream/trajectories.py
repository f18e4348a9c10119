"""Who was followed, for how long, and what became of them: the people and visits that longitudinal tasks start from.

Scans of a person at one time (within a third of a day) are one visit, with their mean gap. Groups are by the diagnosis
at the first visit; a converter is later seen with a worse one (CN to MCI or AD, MCI to AD), or was an MCI visit that
the cohort calls progressive. Conversion has the time of the visit at which it was first seen: up to one interval
between visits late.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from brainage.data.table import KEY, person_keys
from brainage.errors import DataError

GROUPS = ("CN", "MCI", "AD")
EVERYBODY = "all"  # the one group of a cohort in which nobody has any diagnosis
WORSE = {"CN": ("MCI", "AD"), "MCI": ("AD",)}
CONVERTER, STABLE, UNKNOWN = "converter", "stable", "unknown"
_DECIMALS = 3  # of years: visits closer than this are one
_DISAGREE_YEARS = 1.5  # between years of age and years of visits; ages in whole years are off by up to one


@dataclass(frozen=True)
class Followed:
    """`scans`: KEY, person, group, converter, years, years_to_conversion, gap_years, age_years, baseline_age_years, one
    row a scan; `visits` the same, one row a person and time; `people`, one row a person, indexed by person: group, sex,
    converter, gap_years and age_years at the first visit, visits, follow_up_years, event, time_years (to conversion,
    else to the last visit with a diagnosis). `notes` count what was left out or filled.
    """

    scans: pd.DataFrame
    visits: pd.DataFrame
    people: pd.DataFrame
    notes: tuple[str, ...]


def gap_column(correction: str) -> str:
    """The column of gaps that a correction's name stands for."""
    return f"gap_{correction}_years"


def follow(gaps: pd.DataFrame, correction: str) -> Followed:
    """The people of `gaps` (GAP_COLUMNS) who have a group and a time, with the gap of one correction.

    Years are `visit_years` counted from the first scan that is there. Where a person's `visit_years` are incomplete,
    years are those of age, unless nobody's age has a fraction: then the person is left out. Everything left out is
    counted in `notes`. Raises DataError on a missing column, negative times, and scans there twice.
    """
    table = _checked(gaps, correction)
    notes: list[str] = []
    table = _with_years(_only(table, table["gap_years"].notna(), "without a gap", notes), notes)
    table = table.sort_values(["person", "years", *KEY], ignore_index=True)
    first = table.drop_duplicates("person").set_index("person")
    table["baseline_age_years"] = table["person"].map(first["age_years"])
    if table["diagnosis"].isna().all():
        groups = pd.Series(EVERYBODY, index=first.index, dtype=object)
    else:
        groups = first["diagnosis"].where(first["diagnosis"].isin(GROUPS)).astype(object)
    table["group"] = table["person"].map(groups)
    table = _only(table, table["group"].notna(), f"not {', '.join(GROUPS)} at their first visit", notes)
    visits = _visits(table, notes)
    people = _people(visits, table, notes)
    for frame in (table, visits):
        frame["converter"] = frame["person"].map(people["converter"])
        seen = people["time_years"].where(people["event"])
        frame["years_to_conversion"] = frame["person"].map(seen).astype(float) - frame["years"]
    return Followed(table, visits, people, tuple(notes))


def _checked(gaps: pd.DataFrame, correction: str) -> pd.DataFrame:
    column = gap_column(correction)
    for name in (*KEY, "age_years", "sex", "diagnosis", "visit_years", column):
        if name not in gaps:
            raise DataError(f"gaps: column {name!r} missing; found {', '.join(map(str, gaps.columns))}")
    repeated = gaps[gaps.duplicated(KEY)]
    if len(repeated):
        raise DataError(f"gaps: {len(repeated)} scans are there more than once, first {repeated[KEY].iloc[0].tolist()}")
    years = gaps["visit_years"].to_numpy(dtype=np.float64, na_value=np.nan)
    if (years < 0).any():
        raise DataError(f"gaps: {int((years < 0).sum())} visit_years below 0; expected years since the first visit")
    outcome = gaps["mci_outcome"] if "mci_outcome" in gaps else pd.Series(pd.NA, index=gaps.index, dtype="string")
    return pd.DataFrame({
        **{name: gaps[name] for name in KEY}, "person": person_keys(gaps).astype(object), "sex": gaps["sex"],
        "diagnosis": gaps["diagnosis"], "mci_outcome": outcome, "visit_years": years,
        "age_years": gaps["age_years"].to_numpy(dtype=np.float64), "gap_years": gaps[column].to_numpy(dtype=np.float64),
    })  # fmt: skip


def _only(table: pd.DataFrame, kept: pd.Series, what: str, notes: list[str]) -> pd.DataFrame:
    lost = table[~kept]
    if len(lost):
        notes.append(f"{lost['person'].nunique()} people ({len(lost)} scans) {what} left out")
    return table[kept].copy()


def _with_years(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The column `years`: since the first scan of each person that is there."""
    person = table["person"]
    incomplete = table["visit_years"].isna().groupby(person).transform("any")
    incomplete &= person.groupby(person).transform("size") > 1
    ages = table["age_years"]
    if incomplete.any() and (ages == ages.round()).all():
        table = _only(table, ~incomplete, "without visit_years, and with ages in whole years,", notes)
        return table.assign(years=table["visit_years"] - _first(table, "visit_years")).fillna({"years": 0.0})
    since = ages - _first(table, "age_years")
    between = table["visit_years"] - _first(table, "visit_years")
    if incomplete.any():
        notes.append(f"{person[incomplete].nunique()} people without all visit_years are timed by their ages")
    apart = ((since - between).abs() > _DISAGREE_YEARS).groupby(person).any().sum()
    if apart:
        notes.append(f"{apart} people whose visit_years and ages are more than {_DISAGREE_YEARS} years apart")
    return table.assign(years=between.mask(incomplete, since).fillna(0.0))


def _first(table: pd.DataFrame, name: str) -> pd.Series:
    return table.groupby("person")[name].transform("min")


def _visits(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """One row a person and time; a time's diagnosis is the last known one of its scans."""
    last = dict.fromkeys(("group", "sex", "diagnosis", "mci_outcome"), "last")  # of those that are known
    mean = dict.fromkeys(("years", "gap_years", "age_years", "baseline_age_years"), "mean")
    timed = table.assign(time=table["years"].round(_DECIMALS))
    visits = timed.groupby(["person", "time"]).agg({**last, **mean}).reset_index().drop(columns="time")
    if len(visits) < len(table):
        notes.append(f"{len(table) - len(visits)} further scans at the time of another averaged with it")
    return visits


def _people(visits: pd.DataFrame, table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    grouped = visits.groupby("person")
    people = grouped[["group", "sex", "gap_years", "age_years", "mci_outcome"]].nth(0).set_axis(
        list(grouped.groups), axis=0
    )  # fmt: skip
    people["visits"], people["follow_up_years"] = grouped.size(), grouped["years"].max()
    diagnosed = visits[visits["diagnosis"].notna()]
    pairs = zip(diagnosed["diagnosis"], diagnosed["group"], strict=True)
    worse = np.array([diagnosis in WORSE.get(group, ()) for diagnosis, group in pairs], dtype=bool)
    seen = diagnosed[worse].groupby("person")["years"].min()
    people["event"] = people.index.isin(seen.index)
    people["time_years"] = seen.reindex(people.index).fillna(diagnosed.groupby("person")["years"].max()).fillna(0.0)
    people["converter"] = _outcomes(people, visits)
    back = diagnosed[diagnosed["years"] > diagnosed["person"].map(seen).astype(float)]
    before = back["diagnosis"] == back["group"]
    if before.any():
        notes.append(f"{back.loc[before, 'person'].nunique()} converters later seen as before count as converters")
    hidden = ((people["converter"] == CONVERTER) & ~people["event"]).sum()
    if hidden:
        notes.append(f"{hidden} progressive people whose conversion is at no scan here have no time of it")
    return people.drop(columns="mci_outcome")


def _outcomes(people: pd.DataFrame, visits: pd.DataFrame) -> pd.Series:
    """converter, stable or unknown (no follow-up, or too short for the cohort's own rule); NA where none can worsen."""
    progressive = visits.loc[visits["mci_outcome"] == "progressive", "person"]
    can = people["group"].isin(list(WORSE))
    converter = people["event"] | (people.index.isin(progressive) & (people["group"] == "MCI"))
    stable = np.where(people["mci_outcome"].notna(), people["mci_outcome"] == "stable", people["time_years"] > 0)
    found = pd.Series(UNKNOWN, index=people.index, dtype=object)
    found[stable.astype(bool)] = STABLE
    found[converter] = CONVERTER
    return found.where(can, pd.NA)
