"""How people are drawn: by a hash of each, in strata that keep their shares, or by whole sites. No split is named here.

Legend: a frame of people has the columns cohort, participant_id, one row a person, sorted by them; `first` is one with
the age_years, sex and site of their first scans (`first_scans`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from brainage.data.table import PERSON
from brainage.errors import DataError

STRATIFY = ("age", "sex", "site")
AGE_BIN_YEARS = 5.0


def digest(values: Iterable[object]) -> str:
    """16 hex digits of a list of plain values."""
    text = json.dumps(list(values), ensure_ascii=False)  # quoted, so that no two lists read alike
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def draw_share(first: pd.DataFrame, stratify: Sequence[str], share: float, purpose: str, seed: int) -> np.ndarray:
    """bool [people]: about `share` of them, by a hash of each, or stratified."""
    if not stratify:
        return (hash_shares(first, purpose, seed) < share).to_numpy()
    if share == 0 or first.empty:
        return np.zeros(len(first), dtype=bool)
    return draw_stratified(first, strata(first, stratify, share), share, purpose=purpose, seed=seed)


def draw_fold(first: pd.DataFrame, stratify: Sequence[str], folds: int, fold: int, seed: int) -> np.ndarray:
    """bool [people]: part `fold` of `folds`, which hold everybody once; DataError when nobody is in it."""
    if not stratify or first.empty:
        found = np.floor(hash_shares(first, "fold", seed) * folds).to_numpy() == fold
    else:
        labels, left = strata(first, stratify, 1 / folds), np.arange(len(first))
        # Each fold takes its share of who is left: that leaves every group of every fold at its share, rounded.
        for number in range(fold + 1):
            share, purpose = 1 / (folds - number), f"fold {number}"
            drawn = draw_stratified(first.iloc[left], labels.iloc[left], share, purpose=purpose, seed=seed)
            taken, left = left[drawn], left[~drawn]
        found = np.isin(np.arange(len(first)), taken)
    if not found.any():
        hint = "" if stratify else ", or data.stratify, which makes them equally large"
        raise DataError(
            f"data.folds={folds}: nobody of {len(first)} people is in fold {fold}; expected fewer folds{hint}"
        )
    return found


def group_fold(table: pd.DataFrame, column: str, folds: int, fold: int, seed: int) -> pd.Series:
    """bool of each person of the table, sorted: is all that part `fold` holds, made of whole sites or cohorts?"""
    dealt, groups = deal_groups(table, column, folds, seed)
    if groups < folds:
        raise DataError(
            f"data.folds={folds} by {column}: found {groups} {column}s (those that share people count as one); "
            f"expected data.folds={groups} or fewer, or data.folds_by=person"
        )
    return dealt["fold"] == fold


def hash_shares(people: pd.DataFrame, purpose: str, seed: int) -> pd.Series:
    """A number in [0, 1) of each person, uniform over people, independent between purposes and seeds."""
    return _uniform([[purpose, seed, c, p] for c, p in people[PERSON].itertuples(index=False, name=None)], people.index)


def first_scans(table: pd.DataFrame) -> pd.DataFrame:
    """A frame of people with `age_years`, `sex` and `site` of the first scan: the youngest, then the least key."""
    order = table.sort_values([*PERSON, "age_years", "session_id", "run"], na_position="first", kind="stable")
    return order.drop_duplicates(PERSON)[[*PERSON, "age_years", "sex", "site"]].reset_index(drop=True)


def strata(first: pd.DataFrame, stratify: Sequence[str], share: float) -> pd.DataFrame:
    """Labels (text) of each person of `first_scans` for `draw_stratified`: a column for each word of `stratify`.

    A group is rare when `share` of it is less than one person. Rare age bins (5 years) are joined to the next older
    ones until the bin is not rare, the oldest to the one before. Rare sites stay, but all together count as one site
    too (column `large`: the site where it is not rare). Unknown sex, site or age is a group of its own.
    """
    fewest = math.ceil(round(1 / share, 9))
    labels = pd.DataFrame(index=first.index)
    if "site" in stratify:
        labels["site"] = first["site"].astype(object).fillna("")
        people = labels.groupby("site")["site"].transform("size")
        labels["large"] = labels["site"].where(people >= fewest, "rare")
    if "age" in stratify:
        labels["age"] = _age_bins(first["age_years"], fewest)
    if "sex" in stratify:
        labels["sex"] = first["sex"].astype(object).fillna("")
    return labels


def draw_stratified(people: pd.DataFrame, labels: pd.DataFrame, share: float, *, purpose: str, seed: int) -> np.ndarray:
    """bool [n]: a share of the people, drawn so that each group of people gets its share, rounded down or up.

    The groups are everybody; each site, age bin of a site, and sex in that; each sex and age bin of a sex (so that an
    age bin, the sum of its sexes, is off by less than one person a sex). They make two nested families, and for two
    nested families such a rounding always exists and is a corner of a linear programme (Edmonds 1970; Cox 1987 calls it
    controlled rounding). Of those the one nearest to rounding every smallest group by itself at random is taken, so
    that each person's chance is close to `share`; within a smallest group people are drawn by their hash. A function of
    (seed, purpose, who is there), whatever the order of the rows; unlike a draw by hash, one person more may move
    others.
    """
    names = list(labels.columns)
    cell_of = labels.groupby(names, sort=True).ngroup().to_numpy()
    cells = labels.assign(n=1).groupby(names, sort=True, as_index=False)["n"].sum()
    keys = [[purpose, "cell", seed, *row] for row in cells[names].itertuples(index=False, name=None)]
    drawn = _round_in_groups(cells["n"].to_numpy(), share, list(_groups(cells)), _uniform(keys, cells.index).to_numpy())
    lot = hash_shares(people, purpose, seed).to_numpy()
    order = np.lexsort((lot, cell_of))
    first = np.r_[0, np.cumsum(cells["n"].to_numpy())[:-1]]
    place = np.empty(len(people), dtype=np.intp)  # of each person in the order of lots within the cell
    place[order] = np.arange(len(people)) - first[cell_of[order]]
    return place < drawn[cell_of]


def deal_groups(table: pd.DataFrame, column: str, folds: int, seed: int) -> tuple[pd.DataFrame, int]:
    """A frame of people with their `fold`, whole groups (sites, cohorts) dealt so that folds are alike in people.

    Groups that share a person are kept together, or that person would be in two folds; scans without a group count for
    people who have no other, all of whom are one group. The largest is dealt first, each to the fold that has fewest
    people, so that two folds differ by one group at most; the seed decides between equals. Also gives how many such
    groups there are: with fewer than `folds`, some folds are empty.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = table[PERSON].assign(group=table[column].astype(object)).sort_values(PERSON, ignore_index=True)
    person = rows.groupby(PERSON).ngroup().to_numpy()
    known = rows["group"].notna()
    counted = known | ~known.groupby(person).transform("any")
    rows, person = rows[counted], person[counted]
    names, group = np.unique(rows["group"].fillna("").to_numpy(dtype=str), return_inverse=True)
    nodes = len(names) + person.max() + 1
    links = coo_array((np.ones(len(rows)), (group, len(names) + person)), shape=(nodes, nodes))
    component = connected_components(links, directed=False)[1]
    people = rows[PERSON].drop_duplicates(ignore_index=True)
    together = component[len(names) :]
    sizes = np.bincount(together)
    least = pd.Series(names).groupby(component[: len(names)]).min()  # the name a component goes by
    tie = _uniform([["fold", seed, name] for name in least], least.index)
    fold_of, load = np.empty(len(sizes), dtype=np.int64), np.zeros(folds, dtype=np.int64)
    for place in np.lexsort((tie.to_numpy(), -sizes)):
        fold_of[place] = load.argmin()
        load[fold_of[place]] += sizes[place]
    return people.assign(fold=fold_of[together]), len(sizes)


def _groups(cells: pd.DataFrame) -> Iterator[np.ndarray]:
    """The group (a number) of each cell, for every level of the two nested families."""
    for chain in (["large", "site", "age", "sex"], ["sex", "age"]):
        present = [name for name in chain if name in cells]
        for depth in range(len(present) + 1):
            if depth == 0:
                yield np.zeros(len(cells), dtype=np.intp)
            else:
                yield cells.groupby(present[:depth]).ngroup().to_numpy()


def _round_in_groups(sizes: np.ndarray, share: float, levels: list[np.ndarray], u: np.ndarray) -> np.ndarray:
    """int64 [cells]: `share` of each size, rounded down or up so that the sum over every group is too."""
    from scipy.optimize import linprog
    from scipy.sparse import coo_array, vstack

    def wanted(people: np.ndarray) -> np.ndarray:
        return np.round(share * people, 9)  # 0.2 x 15 is 3.0000000000000004

    down = np.floor(wanted(sizes))
    fraction = wanted(sizes) - down
    rows, least, most = [], [], []
    for level in levels:
        rows.append(coo_array((np.ones(len(level)), (level, np.arange(len(level))))))
        people, already = np.bincount(level, weights=sizes), np.bincount(level, weights=down)
        least.append(np.floor(wanted(people)) - already)
        most.append(np.ceil(wanted(people)) - already)
    above = vstack(rows)
    solved = linprog(
        u - fraction,  # least where the cells with u < fraction are rounded up, which is rounding each at random
        A_ub=vstack([above, -above]),
        b_ub=np.concatenate([*most, *(-bound for bound in least)]),
        bounds=np.stack([np.zeros(len(sizes)), np.ceil(fraction)], axis=1),
        method="highs-ds",  # the simplex ends in a corner, where every number is whole
    )
    assert solved.success, solved.message  # fraction itself is a solution
    return np.rint(down + solved.x).astype(np.int64)


def _age_bins(ages: pd.Series, fewest: int) -> pd.Series:
    """Each age's bin, as text; bins of fewer people are joined as `strata` says."""
    bins = ages // AGE_BIN_YEARS
    counts = bins.value_counts().sort_index()
    start: list[float] = []  # lower ends of the joined bins
    people = 0
    for lower, count in counts.items():
        if not start or people >= fewest:
            start.append(lower)
            people = 0
        people += count
    if len(start) > 1 and people < fewest:
        start.pop()
    joined = np.searchsorted(start, bins.to_numpy(), side="right") - 1
    return pd.Series(np.where(bins.isna(), "", joined.astype(str)), index=ages.index, dtype=object)


def _uniform(keys: Iterable[Iterable[object]], index: pd.Index) -> pd.Series:
    return pd.Series([int(digest(key), 16) / 2**64 for key in keys], index=index, dtype="float64")
