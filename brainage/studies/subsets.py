"""Smaller training sets that lie in one another, for the question what more people, or more sites, are good for.

A subset is a split file: the tests stay who they are, the chosen people of train stay in train, and the others go to
`val`, on which nothing is fitted in such a study (its probes are fitted on train alone). Both orders below are pure
functions of (seed, who is in train): a smaller subset is the beginning of a larger one.

- people: everybody at first one of each site, so that the sites are the same at every size; then each site keeps its
  share, and within a site ages keep theirs.
- sites: sites by a hash, those of young, middle and old mean age keeping their shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from brainage.data.drawing import first_scans, hash_shares
from brainage.data.table import PERSON
from brainage.errors import ConfigError, DataError

AGE_BIN_YEARS = 10


@dataclass(frozen=True)
class Subset:
    """How much of train an arm sees; 0 is all of it."""

    people: int = 0
    sites: int = 0

    def __bool__(self) -> bool:
        return bool(self.people or self.sites)

    @property
    def label(self) -> str:
        """
        >>> Subset(people=300, sites=8).label
        'people300_sites8'
        """
        parts = (f"people{self.people}" * (self.people > 0), f"sites{self.sites}" * (self.sites > 0))
        return "_".join(filter(None, parts))

    @classmethod
    def of(cls, values: dict[str, object], source: str) -> Subset:
        """From the keys behind `subset.`; ConfigError on an unknown one or what is no number of people."""
        for key, value in values.items():
            if key not in ("people", "sites"):
                raise ConfigError(f"{source}: unknown key 'subset.{key}'; known: subset.people, subset.sites")
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{source}: subset.{key}={value}: expected a whole number of 1 or more")
        return cls(**{key: int(str(value)) for key, value in values.items()})


def subset_split(table: pd.DataFrame, split: pd.DataFrame, subset: Subset, *, seed: int) -> pd.DataFrame:
    """`split` with the people of train who are not in the subset moved to val.

    `table`: the scans, with site and age; a person without a site is never chosen. Raises DataError naming what there
    is when train has fewer people or sites than the subset asks for, fewer people than sites, or nobody would be left
    for val (a split file without val would have one carved out of the subset).
    """
    train = split[split["split"] == "train"]
    people = first_scans(table).merge(train[PERSON], on=PERSON)
    people = people[people["site"].notna()].reset_index(drop=True)
    if subset.sites:
        order = site_order(people, seed=seed)
        if subset.sites > len(order):
            raise DataError(f"subset.sites={subset.sites}: train has {len(order)} sites")
        people = people[people["site"].isin(order[: subset.sites])].reset_index(drop=True)
    wanted = subset.people or len(people)
    sites = people["site"].nunique()
    if not sites <= wanted <= len(people):
        raise DataError(
            f"subset.people={wanted}: {subset.sites or 'all'} sites of train hold {len(people)} people at {sites} "
            f"sites; expected {sites} to {len(people)}, so that each of these sites is in the subset"
        )
    chosen = people.iloc[people_order(people, seed=seed)[:wanted]]
    kept = pd.MultiIndex.from_frame(split[PERSON]).isin(pd.MultiIndex.from_frame(chosen[PERSON]))
    held_back = (split["split"] == "train") & ~kept
    made = split.assign(split=split["split"].mask(held_back, "val"))
    if not (made["split"] == "val").any():
        raise DataError(
            f"subset.people={wanted}: all of train, and there is no val; expected fewer people, or data.val_fraction "
            "above 0 in the base experiment"
        )
    return made


def people_order(people: pd.DataFrame, *, seed: int) -> np.ndarray:
    """Rows of `first_scans` in the order in which subsets take them: one of each site, then by shares."""
    bins = (people["age_years"] // AGE_BIN_YEARS).fillna(-1)
    lot = hash_shares(people, "subset", seed).to_numpy()
    within = _spread(pd.MultiIndex.from_arrays([people["site"], bins]), lot)  # place of a person in the own age group
    place = pd.Series(within).groupby(people["site"].to_numpy()).rank(method="first").to_numpy() - 1
    size = people.groupby("site")["site"].transform("size").to_numpy()
    start = pd.Series(lot).groupby(people["site"].to_numpy()).transform("first").to_numpy()  # some number of each site
    position = (place + start) / size
    return np.lexsort((lot, position, place > 0))


def site_order(people: pd.DataFrame, *, seed: int) -> list[str]:
    """Sites in the order in which subsets take them."""
    sites = people.groupby("site")["age_years"].mean()
    as_people = pd.DataFrame({"cohort": "site", "participant_id": sites.index.astype(str)}, index=sites.index)
    lot = hash_shares(as_people, "subset", seed).to_numpy()
    thirds = np.argsort(np.argsort(sites.to_numpy(), kind="stable"), kind="stable") * 3 // len(sites)
    return sites.index[np.lexsort((lot, _spread(thirds, lot)))].tolist()


def _spread(groups: np.ndarray | pd.MultiIndex, lot: np.ndarray) -> np.ndarray:
    """[n] position in [0, 1): those of a group lie evenly, so that each beginning holds groups by their shares."""
    codes = pd.factorize(groups)[0]
    by_group = pd.Series(lot).groupby(codes)
    rank = by_group.rank(method="first").to_numpy() - 1
    size = by_group.transform("size").to_numpy()
    start = by_group.transform("first").to_numpy()  # some number of each group, so that equal ones do not tie
    return (rank + start) / size
