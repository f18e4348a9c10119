"""Sites told apart among people of the same age: pairs of sites, matched one to one in bins of five years.

n scans, K sites, R resamples. Where sites scanned people of different ages, whoever knows age knows something of
the site. In a matched pair both sites have equally many people in every bin, so that any guess made from the bin alone
is right in exactly half of them; what a probe does beyond one half it does by something else than age.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.data.table import scan_keys
from brainage.downstream.probes import people
from brainage.downstream.results import FEWEST_PEOPLE
from brainage.statistics.bootstrap import Statistic
from brainage.statistics.permutation import person_shuffles

BIN_YEARS = 5


class Pairs(NamedTuple):
    """Who takes part in which pair of sites."""

    scans: pd.DataFrame  # [n] one scan a person
    codes: np.ndarray  # [n] number of each scan's site
    bins: np.ndarray  # [n] age // BIN_YEARS
    member: np.ndarray  # float64 [n, K]: 1 where the person takes part in the pair of the own site and site k

    @property
    def persons(self) -> np.ndarray:
        """[n] text."""
        return people(self.scans)

    @property
    def n(self) -> int:
        """People who take part in any pair."""
        return int(self.member.any(axis=1).sum())

    def by_site(self, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        """[R, K, K] sums of values [n, K] over the people of each site, with weights [R, n]."""
        K = values.shape[1]
        rows = [self.codes == site for site in range(K)]
        return np.stack([weights[:, here] @ values[here] for here in rows], axis=1)

    def sizes(self) -> np.ndarray:
        """int [K, K]: people of the first site in its pair with the second; 0 where there is no such pair."""
        return self.by_site(np.ones((1, len(self.scans))), self.member)[0].round().astype(int)

    def extent(self) -> str:
        """How many pairs, sites and people remain."""
        there = self.sizes() > 0
        pairs, sites = int(there.sum()) // 2, int(there.any(axis=1).sum())
        return f"mean over {pairs} pairs of {sites} sites, chance 0.5; {self.n} people take part, one scan each"


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
    counts = np.zeros((len(sites), bins.max() + 1), dtype=int)
    np.add.at(counts, (codes, bins), 1)
    take = np.minimum(counts[:, None], counts[None])  # [K, K, bins]
    enough = take.sum(axis=2) >= FEWEST_PEOPLE
    np.fill_diagonal(enough, False)
    place = _places(codes, bins, seed)
    everybody = enough[codes]
    matched = everybody & (place[:, None] < take[codes, :, bins])
    return tuple(Pairs(scans, codes, bins, member.astype(np.float64)) for member in (matched, everybody))  # type: ignore[return-value]


def pair_accuracy(pairs: Pairs, scores: np.ndarray) -> Statistic:
    """The balanced accuracy of telling the two sites of a pair apart, mean over pairs, as a weighted statistic.

    `scores` [n, K] are a probe's, in the rows of `pairs.scans`: somebody is recognised whose own site has a higher
    score than the pair's other one. A resample without anybody of a site counts that pair's other site alone.
    """
    right = _recognised(pairs, scores)

    def statistic(weights: np.ndarray) -> np.ndarray:
        drawn, found = pairs.by_site(weights, pairs.member), pairs.by_site(weights, right)
        recall = np.divide(found, drawn, out=np.full_like(found, np.nan), where=drawn > 0)
        other = recall.transpose(0, 2, 1)
        each = np.where(np.isnan(recall), other, np.where(np.isnan(other), recall, (recall + other) / 2))
        return np.nanmean(each.reshape(len(weights), -1), axis=1)  # every pair twice

    return statistic


def shuffled_pairs(pairs: Pairs, scores: np.ndarray, *, shuffles: int, seed: Sequence[int]) -> np.ndarray:
    """[1 + m] accuracies of matched pairs: the truth, then with people of one age bin exchanging their sites.

    The null is that within a bin of age a person's site has nothing to do with the scores. The numbers a site has in a
    bin stay, and with them the pairs.
    """
    sizes = pairs.sizes()
    share = 1 / np.where(sizes > 0, sizes * (sizes > 0).sum(), np.inf)  # of a person in a pair: both sites alike
    orders = [np.arange(len(pairs.scans))]
    orders += person_shuffles(pairs.persons, shuffles=shuffles, seed=seed, strata=pairs.bins)
    return np.array([(share[pairs.codes] * _recognised(pairs, scores[rows])).sum() for rows in orders])


def _recognised(pairs: Pairs, scores: np.ndarray) -> np.ndarray:
    """[n, K] 1 for a member of a pair whose own site has the higher score, one half where both have the same."""
    own = np.take_along_axis(scores, pairs.codes[:, None], axis=1)
    return pairs.member * 0.5 * (1 + np.sign(own - scores))


def _places(codes: np.ndarray, bins: np.ndarray, seed: int) -> np.ndarray:
    """[n] the place of each scan in a random order of those of its site and bin."""
    drawn = np.random.default_rng(seed).permutation(len(codes))
    place = np.empty(len(codes), dtype=int)
    place[drawn] = pd.DataFrame({"site": codes[drawn], "bin": bins[drawn]}).groupby(["site", "bin"]).cumcount()
    return place
