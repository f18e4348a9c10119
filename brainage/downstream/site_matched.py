"""Sites told apart among people of the same age: pairs of sites, matched one to one in bins of five years.

n scans, K sites, P pairs of sites. Where sites scanned people of different ages, whoever knows age knows something of
the site. In a matched pair both sites have equally many people in every bin, so that any guess made from the bin alone
is right in exactly half of them; what a probe does beyond one half it does by something else than age.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse

from brainage.data.table import scan_keys
from brainage.downstream.probes import people
from brainage.downstream.results import FEWEST_PEOPLE
from brainage.statistics.bootstrap import Statistic
from brainage.statistics.permutation import person_shuffles

BIN_YEARS = 5


class Pairs(NamedTuple):
    """One entry for each person taking part in each pair; rows are those of `scans`."""

    scans: pd.DataFrame  # [n] one scan a person
    bins: np.ndarray  # [n] age // BIN_YEARS
    row: np.ndarray  # [entries]
    own: np.ndarray  # [entries] number of the person's site
    other: np.ndarray  # [entries] number of the pair's other site
    side: np.ndarray  # [entries] 2 p or 2 p + 1: which site of pair p
    P: int  # number of pairs

    @property
    def persons(self) -> np.ndarray:
        """[n] text."""
        return people(self.scans)

    def extent(self) -> str:
        """How many pairs, sites and people remain."""
        sites, rows = len(np.unique(self.own)), len(np.unique(self.row))
        return f"mean over {self.P} pairs of {sites} sites, chance 0.5; {rows} people take part, one scan each"


def age_matched(scored: pd.DataFrame, sites: np.ndarray, seed: int) -> tuple[Pairs, Pairs]:
    """(matched, unmatched) pairs of the scored scans; `sites` [K] are the names a probe knows, sorted.

    Of each person the first scan by key. For two sites, each bin gives as many people of either as the site with fewer
    has there, drawn by the seed. Pairs of fewer than FEWEST_PEOPLE matched people a site are left out. `unmatched` are
    the same pairs with everybody of both sites, to compare with. The order of the rows is of no consequence.
    """
    scans = scored.iloc[np.argsort(scan_keys(scored).to_numpy(dtype=str), kind="stable")]
    scans = scans[~pd.Series(people(scans)).duplicated().to_numpy()]
    codes = np.searchsorted(sites, scans["site"].to_numpy(dtype=str))
    bins = (scans["age_years"].to_numpy() // BIN_YEARS).astype(int)
    drawn = np.random.default_rng(seed).permutation(len(scans))
    members = {key: drawn[where] for key, where in _rows_by(codes[drawn], bins[drawn]).items()}
    counts = np.zeros((len(sites), bins.max() + 1), dtype=int)
    np.add.at(counts, (codes, bins), 1)
    matched, whole = [], []
    for a, b in combinations(range(len(sites)), 2):
        take = np.minimum(counts[a], counts[b])
        if take.sum() >= FEWEST_PEOPLE:
            here = np.flatnonzero(take).tolist()
            matched.append([(one, np.concatenate([members[one, k][: take[k]] for k in here])) for one in (a, b)])
            whole.append([(one, np.flatnonzero(codes == one)) for one in (a, b)])
    return _pairs(scans, bins, matched), _pairs(scans, bins, whole)


def pair_accuracy(pairs: Pairs, scores: np.ndarray) -> Statistic:
    """The balanced accuracy of telling the two sites of a pair apart, mean over pairs, as a weighted statistic.

    `scores` [n, K] are a probe's, in the rows of `pairs.scans`: somebody is recognised whose own site has a higher
    score than the pair's other one. A resample without anybody of a site counts that pair's other site alone.
    """
    shape, n = (2 * pairs.P, len(pairs.scans)), np.ones(len(pairs.row))
    member = scipy.sparse.csr_matrix((n, (pairs.side, pairs.row)), shape)
    recognised = scipy.sparse.csr_matrix((_recognised(pairs, scores).astype(float), (pairs.side, pairs.row)), shape)

    def statistic(weights: np.ndarray) -> np.ndarray:
        drawn, right = member @ weights.T, recognised @ weights.T  # [2 P, R]
        recall = np.divide(right, drawn, out=np.zeros_like(right), where=drawn > 0)
        there = drawn > 0
        sides = there.reshape(pairs.P, 2, -1).sum(axis=1)
        each = recall.reshape(pairs.P, 2, -1).sum(axis=1) / np.maximum(sides, 1)
        return each.sum(axis=0) / (sides > 0).sum(axis=0)

    return statistic


def shuffled_pairs(pairs: Pairs, scores: np.ndarray, *, shuffles: int, seed: list[int]) -> np.ndarray:
    """[1 + m] accuracies of matched pairs: the truth, then with people of one age bin exchanging their sites.

    The null is that within a bin of age a person's site has nothing to do with the scores. The numbers a site has in a
    bin stay, and with them the pairs.
    """
    share = 1 / (2 * pairs.P * np.bincount(pairs.side))[pairs.side]  # of an entry; 1 / (2 P matched people)
    orders = [np.arange(len(pairs.scans))]
    orders += person_shuffles(pairs.persons, shuffles=shuffles, seed=seed, strata=pairs.bins)
    return np.array([(share * _recognised(pairs, scores[rows])).sum() for rows in orders])


def _recognised(pairs: Pairs, scores: np.ndarray) -> np.ndarray:
    """[entries] 1 where the own site has the higher score, one half where both have the same."""
    difference = scores[pairs.row, pairs.own] - scores[pairs.row, pairs.other]
    return 0.5 * (1 + np.sign(difference))


def _rows_by(codes: np.ndarray, bins: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    return pd.DataFrame({"site": codes, "bin": bins}).groupby(["site", "bin"]).indices


def _pairs(scans: pd.DataFrame, bins: np.ndarray, chosen: list) -> Pairs:
    """`chosen`: for each pair its two (site, rows)."""
    parts = [
        (rows, np.full(len(rows), own), np.full(len(rows), sides[1 - place][0]), np.full(len(rows), 2 * p + place))
        for p, sides in enumerate(chosen)
        for place, (own, rows) in enumerate(sides)
    ]
    empty = np.empty(0, dtype=int)
    row, own, other, side = (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else [empty] * 4
    return Pairs(scans, bins, row, own, other, side, len(chosen))
