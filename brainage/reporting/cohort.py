"""The cohort's data sheet: who was used, split by split and site by site, and what was left out and why."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pandas as pd

from brainage.data.exclusion import rule_of
from brainage.data.table import CODES, PERSON, SPLITS
from brainage.downstream.results import FEWEST_PEOPLE
from brainage.reporting.style import SPLIT_NAMES
from brainage.reporting.tables import Table


def split_sheet(table: pd.DataFrame) -> Table:
    """Scans, people, sites, sex and ages of each split; of very few people only their number."""
    groups = [(split, table[table["split"] == split]) for split in SPLITS]
    groups = [(SPLIT_NAMES[split], rows) for split, rows in groups if len(rows)]
    unassigned = table[~table["split"].isin(SPLITS)]
    groups += [("in no split", unassigned)] if len(unassigned) else []
    data = pd.DataFrame([_counts(name, rows) for name, rows in [*groups, ("all", table)]])
    shown = pd.DataFrame({
        "Split": data["group"], "Scans": data["scans"].map(str), "People": data["people"].map(str),
        "Sites": data["sites"].map(str), "F": _shown(data["F"]), "M": _shown(data["M"]),
        "Sex unknown": _shown(data["sex_unknown"]), "Age, mean ± sd": _mean_sd(data), "Age range": _ranges(data),
    })  # fmt: skip
    if not data["sex_unknown"].fillna(0).any():
        shown = shown.drop(columns="Sex unknown")
    note = (
        "Sexes count scans; ages are years at the scan."
        if (data["scans"] != data["people"]).any()
        else "Ages are years."
    )
    return Table("cohort", "The cohort by split", data, shown, note + _hidden(data), strong=(len(data) - 1,))


def site_sheet(table: pd.DataFrame) -> Table:
    """The same by site, largest first."""
    sites = table["site"].astype("string").fillna("unknown")
    parts = [(name, table[sites == name]) for name in sorted(sites.unique())]
    parts.sort(key=lambda part: -len(part[1]))
    data = pd.DataFrame([
        _counts(name, rows) | {"splits": ", ".join(SPLIT_NAMES[s] for s in SPLITS if s in set(rows["split"]))}
        for name, rows in parts
    ])  # fmt: skip
    shown = pd.DataFrame({
        "Site": data["group"], "Splits": data["splits"], "Scans": data["scans"].map(str),
        "People": data["people"].map(str), "F": _shown(data["F"]), "M": _shown(data["M"]),
        "Age, mean ± sd": _mean_sd(data), "Age range": _ranges(data),
    })  # fmt: skip
    return Table("sites", "The cohort by site", data, shown, _hidden(data).strip(), words=("Splits",))


def ages_by_site(table: pd.DataFrame) -> pd.DataFrame:
    """site, people, and the mean age with one sd around it; sites of FEWEST_PEOPLE people or more, largest first."""
    data = site_sheet(table).data.dropna(subset=["age_mean", "age_sd"])
    return pd.DataFrame({
        "site": data["group"], "people": data["people"], "estimate": data["age_mean"],
        "low": data["age_mean"] - data["age_sd"], "high": data["age_mean"] + data["age_sd"],
    })  # fmt: skip


def cohorts_sheet(table: pd.DataFrame) -> Table:
    """Scans, people, sites, sexes and ages of each cohort of a mixture."""
    groups = [(name, table[table["cohort"] == name]) for name in sorted(table["cohort"].unique())]
    data = pd.DataFrame([_counts(name, rows) for name, rows in [*groups, ("all", table)]])
    shown = pd.DataFrame({
        "Cohort": data["group"], "Scans": data["scans"].map(str), "People": data["people"].map(str),
        "Sites": data["sites"].map(str), "F": _shown(data["F"]), "M": _shown(data["M"]),
        "Age, mean ± sd": _mean_sd(data), "Age range": _ranges(data),
    })  # fmt: skip
    return Table("cohorts", "The cohorts", data, shown, _hidden(data).strip(), strong=(len(data) - 1,))


def diagnosis_sheet(table: pd.DataFrame) -> Table:
    """The same by diagnosis at the scan; a person who converted is counted in each."""
    code = table["diagnosis"].astype("string").fillna("unknown")
    names = [name for name in (*CODES["diagnosis"], "unknown") if (code == name).any()]
    data = pd.DataFrame([_counts(name, table[code == name]) for name in names])
    shown = pd.DataFrame({
        "Diagnosis": data["group"], "Scans": data["scans"].map(str), "People": data["people"].map(str),
        "F": _shown(data["F"]), "M": _shown(data["M"]), "Age, mean ± sd": _mean_sd(data), "Age range": _ranges(data),
    })  # fmt: skip
    note = "Diagnoses are those of the scan's visit; who changes counts in each." + _hidden(data)
    return Table("diagnoses", "The cohort by diagnosis", data, shown, note)


def visits_sheet(table: pd.DataFrame) -> Table:
    """How many people have how many scans, and over how many years."""
    groups = table.groupby(PERSON, dropna=False)
    each = pd.DataFrame({"scans": groups.size(), "years": groups["visit_years"].agg(lambda v: v.max() - v.min())})
    data = each.groupby("scans").agg(people=("years", "size"), years=("years", "median")).reset_index()
    data["years"] = data["years"].where(data["people"] >= FEWEST_PEOPLE)
    shown = pd.DataFrame({
        "Scans a person": data["scans"].map(str), "People": data["people"].map(str),
        "Years between first and last, median": ["–" if pd.isna(y) else f"{y:.1f}" for y in data["years"]],
    })  # fmt: skip
    return Table("visits", "Scans a person", data, shown)


def dropped_sheet(dropped: pd.DataFrame) -> Table:
    """Dropped scans counted by reason, with nothing in the reason that could name a person."""
    counts = Counter(anonymous_reasons(dropped))
    data = pd.DataFrame(counts.most_common(), columns=["reason", "scans"])
    shown = pd.DataFrame({"Reason": data["reason"], "Scans": data["scans"].map(str)})
    return Table("dropped", "Scans left out, by reason", data, shown)


def anonymous_reasons(dropped: pd.DataFrame) -> list[str]:
    """Each row's reason without identifiers, paths and quoted values, and without numbers that differ from row to row;
    rules of `data.exclude` are told as they were written.

    >>> rows = {"participant_id": ["p1", "p2"], "reason": ["p1: age 999 not in 0 to 90", "p2: age -4 not in 0 to 90"]}
    >>> anonymous_reasons(pd.DataFrame(rows))
    ['… age … not in 0 to 90', '… age … not in 0 to 90']
    """
    named = dropped["reason"].astype(str).map(rule_of)
    reasons = pd.Series(_anonymous(dropped[named == ""]), index=dropped.index[named == ""], dtype=object)
    return reasons.reindex(dropped.index).where(named == "", named).tolist()


def _anonymous(dropped: pd.DataFrame) -> list[str]:
    columns = [name for name in ("participant_id", "session_id", "path") if name in dropped]
    known = {str(value) for name in columns for value in dropped[name].dropna()}
    words = [[_masked(word, known) for word in str(reason).split()] for reason in dropped["reason"]]
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for row in words:
        groups.setdefault(_shape(row), []).append(row)
    common = {
        shape: " ".join(column[0] if len(set(column)) == 1 else "…" for column in zip(*rows, strict=True))
        for shape, rows in groups.items()
    }
    return [common[_shape(row)] for row in words]


def _shape(words: list[str]) -> tuple[str, ...]:
    return tuple("…" if re.search(r"\d", word) else word for word in words)


def _masked(word: str, known: set[str]) -> str:
    """The word, or an ellipsis where it may name a scan: a known identifier, a path, a quote, letters with digits."""
    bare = word.strip("'\"`.,;:()[]")
    mixed = re.search(r"\d", bare) and re.search(r"[^\W\d]", bare)
    if bare in known or "/" in bare or "\\" in bare or word[:1] in "'\"`" or mixed:
        return "…"
    return word


def _counts(name: str, rows: pd.DataFrame) -> dict[str, object]:
    """Sexes and ages only of FEWEST_PEOPLE or more, and the youngest and oldest in whole years: both are persons."""
    people, sex, ages = len(rows.drop_duplicates(PERSON)), rows["sex"].fillna("NA"), rows["age_years"]
    counts = {"group": name, "scans": len(rows), "people": people, "sites": rows["site"].nunique()}
    told = {
        "F": int((sex == "F").sum()), "M": int((sex == "M").sum()), "sex_unknown": int((~sex.isin(["F", "M"])).sum()),
        "age_mean": ages.mean(), "age_sd": ages.std(), "age_min": ages.min().round(), "age_max": ages.max().round(),
    }  # fmt: skip
    return counts | (told if people >= FEWEST_PEOPLE else dict.fromkeys(told, np.nan))


def _shown(counts: pd.Series) -> list[str]:
    return ["–" if pd.isna(count) else f"{count:.0f}" for count in counts]


def _hidden(data: pd.DataFrame) -> str:
    few = (data["people"] < FEWEST_PEOPLE).any()
    return f" Sexes and ages of fewer than {FEWEST_PEOPLE} people are not shown." if few else ""


def _mean_sd(data: pd.DataFrame) -> list[str]:
    pairs = zip(data["age_mean"], data["age_sd"], strict=True)
    return ["–" if pd.isna(mean) else f"{mean:.1f}" if pd.isna(sd) else f"{mean:.1f} ± {sd:.1f}" for mean, sd in pairs]


def _ranges(data: pd.DataFrame) -> list[str]:
    pairs = zip(data["age_min"], data["age_max"], strict=True)
    return ["–" if pd.isna(low) else f"{low:.0f}–{high:.0f}" for low, high in pairs]
