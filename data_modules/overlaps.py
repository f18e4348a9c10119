"""What a mixture does about one person in two of its cohorts: `data.overlap` refuse, warn or drop.

Ids are compared in the plan, before anything is read; samples once the stores are there, before training. What was
found by samples is kept in `overlap.tsv` in the folder of the mixture, and found again only when a store has changed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from brainage.data.array_store import ArrayStore
from brainage.data.duplicates import Found, find_duplicates
from brainage.data.overlap import (
    OTHER,
    PAIR_COLUMNS,
    held_studies,
    in_several_splits,
    pairs_by_id,
    refuse_split_people,
    repeats,
    same_people,
)
from brainage.data.table import PERSON, read_tsv, write_tsv
from brainage.runtime import console, warn, write_json_atomic
from data_modules.mixture import Member

OVERLAP, LOOKED_AT = "overlap.tsv", "overlap.json"
SCHEMA = 1


class Overlaps:
    """Pairs of people of a mixture that are one person, as far as known by now."""

    def __init__(
        self, policy: Literal["refuse", "warn", "drop"], members: Sequence[Member], table: pd.DataFrame
    ) -> None:
        self.policy = policy
        self.readers = {member.label: member.reader.name for member in members}
        self.pairs = pairs_by_id(table, self.readers)
        self.studies = held_studies(table, self.readers)
        self.said = "not yet compared by their samples, which are there after `brainage prepare`"

    @property
    def groups(self) -> pd.DataFrame:
        """PERSON and group of people who are one."""
        return same_people(self.pairs)

    def report(self, split: pd.DataFrame) -> pd.DataFrame:
        """The pairs, with both people's splits: what is kept beside a run."""
        of = split.set_index(PERSON)["split"]
        named = {}
        for name, columns in (("split", PERSON), ("other_split", OTHER)):
            people = pd.MultiIndex.from_frame(self.pairs[columns].set_axis(PERSON, axis=1))
            named[name] = pd.array(of.reindex(people).to_numpy(), dtype="string")
        return self.pairs.assign(**named)

    def look_at(self, stores: Sequence[ArrayStore], tables: Sequence[pd.DataFrame], folder: Path) -> None:
        """Compare the samples too, or read what was found when these very stores were compared."""
        wanted = {
            "schema": SCHEMA,
            "stores": [[t["cohort"].iloc[0], s.checksum] for s, t in zip(stores, tables, strict=True)],
        }
        found = _kept(folder, wanted)
        if found is None:
            scans = sum(len(store) for store in stores)
            console().print(f"overlap: comparing the samples of {scans} scans of {len(stores)} cohorts", soft_wrap=True)
            found = find_duplicates(stores, tables, self.readers)
            folder.mkdir(parents=True, exist_ok=True)
            write_tsv(found.pairs, folder / OVERLAP)
            write_json_atomic(folder / LOOKED_AT, {**wanted, "said": found.said})
        self.said = found.said
        self.pairs = _joined(self.pairs, found.pairs)

    def refuse(self, split: pd.DataFrame) -> None:
        """Raise LeakageError when the policy is `refuse` and one person is in two splits."""
        if self.policy == "refuse":
            refuse_split_people(self.groups, split)

    def judge(self, split: pd.DataFrame) -> None:
        """Refuse, or warn of people who are in several cohorts."""
        self.refuse(split)
        groups = self.groups
        if groups.empty:
            return
        people, torn = groups["group"].nunique(), in_several_splits(groups, split)["group"].nunique()
        if self.policy == "drop":
            warn(f"overlap of cohorts: {people} people are in more than one; scans of the cohort named first are kept")
        else:
            where = f", {torn} of them in different splits, which flatters every score" if torn else ""
            warn(
                f"overlap of cohorts: {people} people are in more than one and count as several{where}; "
                "data.overlap=drop keeps the scans of the cohort named first"
            )

    def left_out(self, table: pd.DataFrame) -> pd.Series:
        """The reason why each row is left out; NA where it stays."""
        reasons = pd.Series(pd.NA, index=table.index, dtype="string")
        if self.policy == "drop":
            again = repeats(self.groups, list(self.readers)).set_index(PERSON)["reason"]
            people = pd.MultiIndex.from_frame(table[PERSON])
            reasons = pd.Series(again.reindex(people).to_numpy(), index=table.index, dtype="string")
        return reasons

    def lines(self, split: pd.DataFrame) -> dict[str, str]:
        """For the plan: how many, by which rule, and what could not be seen."""
        groups = self.groups
        rules = self.pairs.loc[self.pairs["verdict"] == "same", "rule"].value_counts()
        by = ", ".join(f"{count} by {rule}" for rule, count in rules.items())
        torn = in_several_splits(groups, split)["group"].nunique()
        found = f"{groups['group'].nunique()} people in more than one cohort" + (f" ({by})" if by else "")
        found += f", {torn} of them in different splits" if torn else ""
        possible = int((self.pairs["verdict"] == "possible").sum())
        found += f"; {possible} more pairs are possible" if possible else ""
        differ = int(((self.pairs["verdict"] == "same") & (self.pairs["sexes"] == "differ")).sum())
        found += f"; {differ} pairs differ in sex: look at them" if differ else ""
        lines = {"overlap": f"{found}; {self.said}; data.overlap={self.policy}"}
        if self.studies:
            lines["contained"] = "; ".join(self.studies)
        return lines


def _kept(folder: Path, wanted: dict) -> Found | None:
    note = folder / LOOKED_AT
    if not (note.is_file() and (folder / OVERLAP).is_file()):
        return None
    values = json.loads(note.read_text(encoding="utf-8"))
    if any(values.get(key) != value for key, value in wanted.items()):
        return None
    pairs = read_tsv(folder / OVERLAP).reindex(columns=PAIR_COLUMNS)
    numbers = ["similarity", "correlation", "age_gap_years"]
    return Found(pairs.assign(**{name: pairs[name].astype("float64") for name in numbers}), values["said"])


def _joined(by_id: pd.DataFrame, by_content: pd.DataFrame) -> pd.DataFrame:
    """Each pair once: the rule of ids goes before, with the similarity that was seen; a verdict `same` goes before
    `possible`."""
    every = pd.concat([by_id, by_content], ignore_index=True)
    seen = every.groupby([*PERSON, *OTHER], sort=False)[["similarity", "correlation"]].transform("max")
    every = every.assign(similarity=seen["similarity"], correlation=seen["correlation"])
    order = np.argsort((every["verdict"] != "same").to_numpy(), kind="stable")
    return every.iloc[order].drop_duplicates([*PERSON, *OTHER]).reset_index(drop=True)
