"""Visits with their ages: what the tables of a BIDS dataset say, completed by rules that are written down.

Age at a scan, the first that is there: (1) the visit's own age (sessions.tsv, a wave's column); (2) the age at another
visit of that person plus the difference of acq_time; (3) participants.tsv's age, for a person of one visit; (4) the
same as that of the first visit, plus the difference of acq_time, where every visit has one; (5) what
`data.options.one_age` says. An age that would be a guess is left out, and its visit listed.
"""

from __future__ import annotations

import re

import pandas as pd

from brainage.data.table import CODES, NUMBERS
from data_modules.bids_options import Options
from data_modules.bids_people import KEYS, Tables
from data_modules.sheets import numbers

DAYS_A_YEAR = 365.25
EPOCH = pd.Timestamp(1970, 1, 1)
OF_A_PERSON = ("sex", "apoe4", "education_years")  # said once, true of every visit
OF_THEIR_DAY = ("mmse", "cdr")  # said of the person, they are of no known visit where there are several
NOT_EXTRA = (
    "age_reason",
    "acq_time",
    "person_age",
    "person_age_reason",
    "reason",
    "source",
    "one_diagnosis",
)  # on the way


def complete_visits(tables: Tables, options: Options, imaged: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row a visit, with age_years, visit_years and `reason` (why it cannot be used, NA where it can).

    `imaged` (participant_id as in the tables, session_id, acq_time) are the sessions of which there are images: they
    are the visits of those whom the tables give none. Without it such a person has one visit, without a name.
    """
    visits, sexes = _with_people(tables, imaged, options.one_diagnosis)
    person = visits.groupby("participant_id", sort=False)
    for name in OF_A_PERSON:
        if name in visits:
            visits[name] = visits[name].fillna(person[name].transform("first"))
    reasons = visits["reason"].fillna(_contradictions(visits, sexes, options.same_age_years))
    visits["age_years"], missing, repeated = _complete_ages(visits, options.one_age)
    visits["visit_years"] = _visit_years(visits).mask(repeated)
    visits["reason"] = reasons.fillna(missing.where(visits["age_years"].isna()))
    for name in visits.columns.difference([*KEYS, *NOT_EXTRA, *NUMBERS, *CODES, "site", "diagnosis_detail"]):
        value = numbers(visits[name])
        if value.notna().sum() == visits[name].notna().sum() > 0:
            visits[name] = value
    return visits


def natural(label: str) -> list[tuple[int, str]]:
    """Sorts labels as people count: wave2 before wave10.

    >>> sorted(["wave10", "wave2"], key=natural)
    ['wave2', 'wave10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", label)]


def _with_people(tables: Tables, imaged: pd.DataFrame | None, one_diagnosis: str) -> tuple[pd.DataFrame, pd.Series]:
    """Visits, named or not, with what is said of their people filled in; and of each visit the sexes that are said.

    `one_diagnosis` marks the later visits of people whose only diagnosis is that of the table of people.
    """
    rows = tables.people.drop(columns=["session_id", "acq_time", "visit_years"])
    rows = rows.rename(columns={"age_years": "person_age", "age_reason": "person_age_reason"})
    visits = pd.concat([tables.visits, _unnamed(tables, imaged)], ignore_index=True)
    visits = visits.merge(rows, on="participant_id", how="left", suffixes=("", "_of_person"))
    sexes = visits["sex"].fillna("") + visits["sex_of_person"].fillna("")
    person = visits.groupby("participant_id", sort=False)
    undiagnosed = ~visits["diagnosis"].notna().groupby(visits["participant_id"]).transform("any")
    alone = person["session_id"].transform("size") == 1
    for name in OF_THEIR_DAY:
        if name in rows:
            theirs = f"{name}_of_person" if f"{name}_of_person" in visits else name
            visits[theirs] = visits[theirs].where(alone)
    later = undiagnosed & ~_is_first(visits)
    visits["one_diagnosis"] = later & visits["diagnosis_of_person"].notna()
    theirs_too = undiagnosed if one_diagnosis == "all" else undiagnosed & ~later
    for name in [name for name in visits if name.endswith("_of_person")]:
        ours = name.removesuffix("_of_person")
        said = visits[name].where(theirs_too) if ours.startswith("diagnosis") else visits[name]
        visits[ours] = visits[ours].fillna(said)
        visits = visits.drop(columns=name)
    return visits, sexes


def _unnamed(tables: Tables, imaged: pd.DataFrame | None) -> pd.DataFrame:
    """Visits of the people to whom no table gives one."""
    people, named = tables.people, tables.visits
    alone = people.loc[~people["participant_id"].isin(named["participant_id"]), ["participant_id", "acq_time"]]
    rows = alone.assign(session_id="")
    if imaged is not None:
        seen = imaged[imaged["participant_id"].isin(alone["participant_id"])]
        rows = pd.concat([seen, rows[~rows["participant_id"].isin(seen["participant_id"])]], ignore_index=True)
    empty = named.iloc[:0].reindex(columns=named.columns.difference(rows.columns))
    return pd.concat([rows, empty.reindex(rows.index)], axis=1)[list(named.columns)]


def _contradictions(visits: pd.DataFrame, sexes: pd.Series, same_age_years: float) -> pd.Series:
    """Why what is said of a person cannot all be true; NA where it can."""
    reasons = pd.Series(pd.NA, index=visits.index, dtype="string")
    person = visits.groupby("participant_id", sort=False)
    said = sexes.groupby(visits["participant_id"]).transform("sum")
    reasons[said.str.contains("F") & said.str.contains("M")] = "the tables say both sexes of this person"
    ages = visits["age_years"]
    youngest, oldest = person["age_years"].transform("min"), person["age_years"].transform("max")
    written = visits["person_age"]
    off = (written < youngest - same_age_years) | (written > oldest + same_age_years)
    for row in visits.index[off]:
        reasons[row] = (
            f"age {written[row]:g} in the table of people, {youngest[row]:g} to {oldest[row]:g} in its sessions "
            "(data.options.same_age_years)"
        )
    time = visits["acq_time"].where(ages.notna())
    elapsed = _years_between(time, time.groupby(visits["participant_id"]).transform("min"))
    first = ages.where(elapsed == 0).groupby(visits["participant_id"]).transform("first")
    apart = ((ages - first - elapsed).abs() > same_age_years + 1).groupby(visits["participant_id"]).transform("any")
    return reasons.mask(apart & reasons.isna(), "ages and acq_time of this person's sessions disagree")


def _complete_ages(visits: pd.DataFrame, one_age: str) -> tuple[pd.Series, pd.Series, pd.Series]:
    """Ages by the rules of this module, why one is missing, and where an age only repeats that of another session."""
    people = visits["participant_id"]
    age, time, of_person = visits["age_years"], visits["acq_time"], visits["person_age"]
    anchors = visits[age.notna() & time.notna()].sort_values("acq_time").drop_duplicates("participant_id")
    anchors = anchors.set_index("participant_id").reindex(people).set_axis(visits.index)  # of each visit's person
    unsaid = ~age.notna().groupby(people).transform("any")
    timed = time.notna().groupby(people).transform("all")
    visit_count = people.groupby(people).transform("size")
    first_time = anchors["acq_time"].fillna(time.groupby(people).transform("min").where(unsaid & timed))
    first_age = anchors["age_years"].fillna(of_person.where(unsaid & timed))
    age = age.fillna(first_age + _years_between(time, first_time)).fillna(of_person.where(unsaid & (visit_count == 1)))
    unclear = age.isna() & unsaid & of_person.notna()
    missing = visits["age_reason"].fillna(visits["person_age_reason"].where(unsaid)).fillna("no age of this session")
    missing[unclear] = (
        "one age but " + visit_count.astype("string") + " sessions without acq_time: whose age is it? "
        "(data.options.one_age)"
    )
    chosen = unclear & _is_first(visits) if one_age == "first" else unclear & (one_age == "all")
    return age.fillna(of_person.where(chosen)), missing, chosen & (one_age == "all")


def _is_first(visits: pd.DataFrame) -> pd.Series:
    """Of each person the earliest visit: by acq_time or else age, where every visit has it; else by session label."""
    order_of = pd.Series(0.0, index=visits.index)
    for days in (visits["age_years"] * DAYS_A_YEAR, (visits["acq_time"] - EPOCH).dt.days):
        whole = days.notna().groupby(visits["participant_id"]).transform("all")
        order_of = days.astype("float64").where(whole, order_of)
    order = sorted(visits.index, key=lambda row: (order_of[row], natural(visits.at[row, "session_id"])))
    return ~visits.loc[order].duplicated("participant_id").reindex(visits.index)


def _visit_years(visits: pd.DataFrame) -> pd.Series:
    """Years since a person's first visit: as written, else by acq_time where every visit has one, else by age."""
    people, age, time = visits["participant_id"], visits["age_years"], visits["acq_time"]
    by_age = age - age.groupby(people).transform("min")
    by_time = _years_between(time, time.groupby(people).transform("min"))
    timed = time.notna().groupby(people).transform("all")
    return visits["visit_years"].fillna(by_time.where(timed, by_age))


def _years_between(time: pd.Series, first: pd.Series) -> pd.Series:
    return ((time - first).dt.total_seconds() / (24 * 3600 * DAYS_A_YEAR)).astype("float64")
