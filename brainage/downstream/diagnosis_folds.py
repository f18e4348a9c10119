"""Who is told from whom, and who is held out together: the people, classes and folds of the diagnosis task.

n people, K folds. One scan a person, so that a row is a person and no fold can part the scans of one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.downstream.readout import Readout
from brainage.downstream.results import FEWEST_PEOPLE
from brainage.errors import ConfigError

CLASSES = {  # name in a pair -> column of the table and its value
    "CN": ("diagnosis", "CN"),
    "MCI": ("diagnosis", "MCI"),
    "AD": ("diagnosis", "AD"),
    "sMCI": ("mci_outcome", "stable"),
    "pMCI": ("mci_outcome", "progressive"),
}
MOST_SITE_FOLDS = 10  # sites held out one by one up to here, in groups of about equal numbers of people above
_VISIT_ORDER = ["age_years", "visit_years", "session_id", "run"]


class Pair(NamedTuple):
    """`rows` [n] of the readout's table, one a person in order of their names; `truth` [n] is 1 for the second class.

    `reason` says why there is nothing to compute, and is empty otherwise; `note` counts who was left out.
    """

    name: str
    rows: np.ndarray
    truth: np.ndarray
    reason: str
    note: str


class Folds(NamedTuple):
    """`fold` [n]: 0..K-1 in which somebody is held out, -1 for none; `place` [n]: 0..1 in the order of labelling."""

    fold: np.ndarray
    place: np.ndarray
    note: str


def draw_pair(readout: Readout, name: str) -> Pair:
    """The scored people of a pair such as `CN-AD`, each with the scan of the first visit that holds either class.

    Somebody who held both classes at different visits counts as what they first were: leaving converters out would be a
    choice by what came later. Left out and counted: people whose first such visit says both, and for `sMCI-pMCI` those
    of unknown outcome only. Raises ConfigError on a name that is no pair of CLASSES.
    """
    first, dash, second = name.partition("-")
    if not dash or first not in CLASSES or second not in CLASSES or first == second:
        raise ConfigError(f"evaluate.pairs holds {name!r}: expected two of {', '.join(CLASSES)} joined by '-'")
    columns = {CLASSES[one][0] for one in (first, second)}
    absent = sorted(columns - set(readout.table))
    known = [
        column for column in sorted(columns - set(absent)) if readout.table.loc[readout.score, column].notna().any()
    ]
    if len(known) < len(columns):
        missing = sorted(columns - set(known))[0]
        return Pair(name, np.empty(0, np.intp), np.empty(0, np.int64), f"no scored scan has a {missing}", "")
    table = readout.table.assign(person=readout.persons, row=np.arange(len(readout.table)))
    codes = np.full(len(table), -1)
    for code, (column, value) in enumerate((CLASSES[first], CLASSES[second])):
        codes[(readout.score & (table[column] == value).fillna(False)).to_numpy(dtype=bool)] = code
    visits = table.assign(truth=codes)[codes >= 0].sort_values(["person", *_VISIT_ORDER], kind="stable")
    chosen, notes = _first_visits(visits)
    if "mci_outcome" in columns:
        notes += _unknown_outcomes(table[readout.score], visits)
    truth = chosen["truth"].to_numpy(dtype=np.int64)
    return Pair(name, chosen["row"].to_numpy(dtype=np.intp), truth, _too_few(truth, first, second), "; ".join(notes))


def people_folds(pair: Pair, folds: int, seed: int) -> Folds:
    """People dealt into folds by class, so that every fold has each class in about its share; fewer where one is small.

    The order of dealing is the order in which labels are given out: the first people of each class to `share` are a
    subset of those to any larger share, evenly spread over the same folds.
    """
    smallest = int(np.bincount(pair.truth, minlength=2).min())
    used = max(2, min(folds, smallest))
    generator = np.random.default_rng([seed, 1])
    fold, place, start = np.empty(len(pair.truth), np.intp), np.empty(len(pair.truth)), 0
    for code in (0, 1):
        members = generator.permutation(np.flatnonzero(pair.truth == code))
        fold[members] = (start + np.arange(len(members))) % used
        place[members] = np.arange(len(members)) / max(len(members), 1)
        start += len(members)  # goes on where the class before ended: folds of equal size
    return Folds(fold, place, f"{used} folds" + (f" instead of {folds}: few people" if used < folds else ""))


def site_folds(pair: Pair, table: pd.DataFrame) -> Folds:
    """Whole sites held out in turn: each by itself, or above MOST_SITE_FOLDS in groups of about equal size.

    Fold -1 for people without a site. The note counts those and the sites that have one class only.
    """
    sites = table["site"].iloc[pair.rows]
    names, codes = np.unique(sites.fillna("").to_numpy(dtype=str), return_inverse=True)
    sizes = np.bincount(codes, minlength=len(names))
    known = [index for index in np.argsort(-sizes, kind="stable") if names[index]]
    used = min(len(known), MOST_SITE_FOLDS)
    load, fold_of = np.zeros(max(used, 1)), np.full(len(names), -1)
    for site in known:
        fold_of[site] = int(np.argmin(load))
        load[fold_of[site]] += sizes[site]
    single = sum(len(np.unique(pair.truth[codes == site])) == 1 for site in known)
    lost = int((sites.isna() | (sites == "")).sum())
    grouped = f" in {used} groups" if used < len(known) else ""
    note = f"{len(known)} sites held out in turn{grouped}, {single} of them with one class only"
    note += f"; {lost} people without a site left out" if lost else ""
    return Folds(fold_of[codes], np.zeros(len(codes)), note)


def labelled(folds: Folds, truth: np.ndarray, share: float) -> np.ndarray:
    """bool [n]: the people of each class whose labels are used at `share` of them (rounded up)."""
    sizes = np.bincount(truth, minlength=2)[truth]
    return (folds.fold >= 0) & (np.rint(folds.place * sizes) < np.ceil(share * sizes - 1e-9))


def _first_visits(visits: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row a person, and what to say of people with both classes."""
    first_age = visits.groupby("person")["age_years"].transform("min")
    at_first = visits[visits["age_years"] == first_age]
    contradicted = at_first.groupby("person")["truth"].nunique()
    contradicted = contradicted[contradicted > 1].index
    chosen = visits.drop_duplicates("person")
    chosen = chosen[~chosen["person"].isin(contradicted)]
    both = visits.groupby("person")["truth"].nunique()
    changed = int((both > 1).sum()) - len(contradicted)
    notes = ["one scan a person: the first visit with either class"]
    notes += [f"{changed} people held both classes over time and count as what they first were"] if changed else []
    notes += [f"{len(contradicted)} people left out: both classes at one visit"] if len(contradicted) else []
    return chosen, notes


def _unknown_outcomes(scored: pd.DataFrame, visits: pd.DataFrame) -> list[str]:
    mci = scored[(scored["diagnosis"] == "MCI").fillna(False)]
    unknown = mci.loc[~mci["person"].isin(visits["person"]), "person"].nunique()
    return [f"{unknown} people with MCI of unknown outcome left out"] if unknown else []


def _too_few(truth: np.ndarray, first: str, second: str) -> str:
    counts = dict(zip((first, second), np.bincount(truth, minlength=2).tolist(), strict=True))
    if min(counts.values()) >= FEWEST_PEOPLE:
        return ""
    found = " and ".join(
        f"{'fewer than ' + str(FEWEST_PEOPLE) if n < FEWEST_PEOPLE else n} {c}" for c, n in counts.items()
    )
    return f"{found}: expected at least {FEWEST_PEOPLE} people of each class"
