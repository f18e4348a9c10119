"""Which scans make the batch of a training step: a pure function of (seed, step), so that a resumed run needs no state.

Legend: n scans of the train split, B global batch size, S = n // B steps an epoch, T = S B draws an epoch, K strata,
W ranks.

The batch of a step is global: it does not depend on the number of ranks, each of which takes its `share`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from torch.utils.data import Sampler

from brainage.config import nearest
from brainage.errors import ConfigError

AGE_BIN_YEARS = 5.0
BALANCES = ("none", "age", "site", "cohort")

_GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, fill the unit interval more evenly than those of any other number
_RING, _EPOCH = 1, 2  # apart from the seeds of unweighted epochs, and from each other


class StepBatches(Sampler[list[int]]):
    """Batches of positions in 0..n-1; iterating starts at the step that `position` gives (the trainer's global step)
    and ends with that step's epoch.

    Without weights each epoch is a fresh permutation, its last incomplete batch left out; with fewer than B scans an
    epoch is one batch of all of them. `repeat_first=k` repeats the first k batches of epoch 0 for ever (to overfit on
    purpose).

    `weights` [n] (0 or more, of any sum) draw scan i about T w_i / sum(w) times an epoch, of the same S steps:
    - scans of one stratum take turns: however long the training, their numbers of draws differ by one at most;
    - in each epoch a stratum is drawn its expected number of times, rounded down or up, and every batch has its part;
    - no scan is twice in a batch, where it would be a false pair: what is more than once a step goes to the others;
    - a scan of weight 0 is never drawn; with fewer than B others, a batch is all of those.
    `strata` [n] numbers the groups that this is promised to (by `scan_strata`); without it scans of equal weight are
    one. Raises ConfigError on fewer than 2 scans to draw, or on weights that are none.

    >>> batches = StepBatches(n=7, batch_size=3, seed=0)
    >>> [len(batch) for batch in batches], len(batches)
    ([3, 3], 2)
    >>> resumed = StepBatches(n=7, batch_size=3, seed=0, position=lambda: 3)
    >>> next(iter(resumed)) == batches.batch(3)
    True
    >>> rare = StepBatches(n=4, batch_size=2, seed=0, weights=[3, 1, 1, 1])  # 4 draws an epoch, half of them scan 0
    >>> [0 in rare.batch(step) for step in range(6)]
    [True, True, True, True, True, True]
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        *,
        position: Callable[[], int] | None = None,
        repeat_first: int = 0,
        weights: Sequence[float] | np.ndarray | None = None,
        strata: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        drawable = n if weights is None else int((_checked(weights, n) > 0).sum())
        if drawable < 2:
            weighted = "" if weights is None else " of a weight above 0 (data.weights)"
            raise ConfigError(
                f"train split: expected at least 2 scans{weighted}, found {drawable}; check data.limit and the split"
            )
        self.n = n
        self.batch_size = min(batch_size, drawable)
        self.seed = seed
        self.position = position or (lambda: 0)
        self.repeat_first = repeat_first
        self._steps = n // self.batch_size
        self._turns = None
        if weights is not None:
            self._turns = _Turns(_checked(weights, n), strata, self._steps, self.batch_size, seed)
        self._planned: tuple[int, np.ndarray] = (-1, np.empty((0, 0), dtype=np.int64))

    def __len__(self) -> int:
        return min(self._steps, self.repeat_first) if self.repeat_first else self._steps

    def __iter__(self) -> Iterator[list[int]]:
        first = self.position()
        last = (first // len(self) + 1) * len(self)
        return (self.batch(step) for step in range(first, last))

    def batch(self, step: int) -> list[int]:
        """Positions of the global batch of one step, counted from 0 over the whole training."""
        epoch, within = divmod(step, len(self))
        return self._plan(0 if self.repeat_first else epoch)[within].tolist()

    def _plan(self, epoch: int) -> np.ndarray:
        """int64 [S, B]"""
        if self._planned[0] != epoch:
            self._planned = (epoch, self._permutation(epoch) if self._turns is None else self._turns.plan(epoch))
        return self._planned[1]

    def _permutation(self, epoch: int) -> np.ndarray:
        order = np.random.default_rng([self.seed, epoch]).permutation(self.n)
        return order[: self._steps * self.batch_size].reshape(self._steps, self.batch_size)


class _Turns:
    """Weighted epochs: systematic sampling of strata, whose scans take turns.

    The expected draws e_k of the strata lie end to end on a line of length T; epoch E draws stratum k as often as its
    stretch holds points of the grid u_E + integers (Madow 1949), u_E = frac(u_0 + E golden). So every epoch has T
    draws, every stratum floor(e_k) or ceil(e_k) of them, and e_k on the average. The scans of a stratum are a ring that
    the epochs go round: how far they have come by epoch E is counted from all u before, so no state is kept.
    """

    def __init__(
        self, weights: np.ndarray, strata: Sequence[int] | np.ndarray | None, steps: int, batch_size: int, seed: int
    ) -> None:
        self._steps, self._batch_size, self._seed = steps, batch_size, seed
        drawable = np.flatnonzero(weights > 0)
        codes = _codes(weights, strata)[drawable]
        rng = np.random.default_rng([seed, 0, _RING])
        shuffled = rng.permutation(len(drawable))
        self._phase = rng.random()
        ring = shuffled[np.argsort(codes[shuffled], kind="stable")]
        self._ring = drawable[ring]  # positions, the scans of a stratum side by side
        _, first, self._stratum, self._sizes = np.unique(
            codes[ring], return_index=True, return_inverse=True, return_counts=True
        )
        self._place = np.arange(len(ring)) - first[self._stratum]
        shares = np.bincount(self._stratum, weights=weights[self._ring])
        expected = _at_most(shares, self._sizes * steps, steps * batch_size)
        ends = np.cumsum(expected)
        ends[-1] = steps * batch_size
        # Rounded, or 2.9999999999 would now and then be rounded down to 2.
        self._whole = np.floor(np.round(ends, 9)).astype(np.int64)
        self._fraction = np.round(ends - self._whole, 9)

    def plan(self, epoch: int) -> np.ndarray:
        """int64 [S, B]: positions of every batch of an epoch."""
        before, after = self._drawn(epoch), self._drawn(epoch + 1)
        rounds, rest = np.divmod(after - before, self._sizes)
        ahead = (self._place - before[self._stratum]) % self._sizes[self._stratum]
        times = rounds[self._stratum] + (ahead < rest[self._stratum])
        rng = np.random.default_rng([self._seed, epoch, _EPOCH])
        order = np.lexsort((rng.random(len(self._ring)), rng.permutation(len(self._sizes))[self._stratum]))
        draws = np.repeat(self._ring[order], times[order])
        # Dealt like cards: neighbours, of which a scan has S at most, go to different batches, and so does a stratum.
        batches = draws.reshape(self._batch_size, self._steps).T[rng.permutation(self._steps)]
        return rng.permuted(batches, axis=1)  # ranks take contiguous parts: no part may belong to some strata

    def _drawn(self, epoch: int) -> np.ndarray:
        """int64 [K]: draws of each stratum in all epochs before this one."""
        offsets = np.sort((self._phase + _GOLDEN * np.arange(epoch)) % 1)
        # floor(end + u) is floor(end), plus 1 where u makes up for what the fraction lacks
        reached = epoch - np.searchsorted(offsets, 1 - self._fraction, side="left")
        return np.diff(self._whole * epoch + reached, prepend=0)


def share(batch: Sequence[int], rank: int, ranks: int) -> list[int]:
    """The contiguous part of a global batch that belongs to `rank` of 0..ranks-1.

    Parts laid end to end are the batch. The first B % W ranks have one scan more than the others; they are equal where
    W divides B. Raises ConfigError where a rank would have none, since it would wait for the others for ever.

    >>> [share([5, 1, 4, 2, 3], rank, 3) for rank in range(3)]
    [[5, 1], [4, 2], [3]]
    """
    if not 0 <= rank < ranks:
        raise ConfigError(f"rank {rank} of {ranks}: expected 0 to {ranks - 1}")
    if ranks > len(batch):
        raise ConfigError(
            f"a batch of {len(batch)} scans for {ranks} devices leaves some without any: expected a data.batch_size of "
            f"{ranks} or more, or fewer trainer.devices"
        )
    each, more = divmod(len(batch), ranks)
    first = rank * each + min(rank, more)
    return list(batch[first : first + each + (rank < more)])


def scan_weights(
    table: pd.DataFrame, *, balance: str = "none", cohort_weights: Mapping[str, float] | None = None
) -> np.ndarray | None:
    """float64 [n], summing to 1: how often each scan (row) of the train split is drawn; None where all count alike.

    `balance`: age bins of 5 years (scans without an age are one), sites (of a cohort each; scans without a site are
    one) or cohorts share the draws equally, and the scans of one alike. `cohort_weights`: shares of the cohorts, of any
    sum; a `balance` by age or site then holds within each cohort. A bin of very few scans is drawn whole in nearly
    every batch: its few people may be learnt by heart. Raises ConfigError on an unknown balance or cohort, a cohort
    without a weight, weights that are no shares, and balance=cohort beside weights.

    >>> table = pd.DataFrame({"cohort": ["a", "a", "a", "b"], "age_years": [20, 21, 62, 62.5]})
    >>> scan_weights(table, balance="age").tolist()
    [0.25, 0.25, 0.25, 0.25]
    >>> scan_weights(table, cohort_weights={"a": 3, "b": 2}).round(3).tolist()
    [0.2, 0.2, 0.2, 0.4]
    """
    found = _strata(table, balance, cohort_weights or {})
    return None if found is None else found[0]


def scan_strata(
    table: pd.DataFrame, *, balance: str = "none", cohort_weights: Mapping[str, float] | None = None
) -> np.ndarray | None:
    """int64 [n]: the number of each scan's stratum, the group within which `scan_weights` of the same arguments are
    equal by design; None where that is None. For `StepBatches`."""
    found = _strata(table, balance, cohort_weights or {})
    return None if found is None else found[1]


def _strata(
    table: pd.DataFrame, balance: str, cohort_weights: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Weight and stratum of each scan."""
    if balance not in BALANCES:
        raise ConfigError(f"data.balance={balance}: unknown{nearest(balance, list(BALANCES))}")
    if balance == "none" and not cohort_weights:
        return None
    cohorts = table["cohort"].astype(object)
    group = pd.Series("", index=table.index)
    if balance == "age":
        group = (table["age_years"] // AGE_BIN_YEARS).fillna(-1)  # scans of unknown age are a bin of their own
    elif balance == "site":
        group = cohorts + "/" + table["site"].astype(object).fillna("")
    elif balance == "cohort":
        group = cohorts
    outer = cohorts if cohort_weights else pd.Series("", index=table.index)
    shares = _cohort_shares(cohorts, balance, cohort_weights) if cohort_weights else {"": 1.0}
    frame = pd.DataFrame({"outer": outer, "group": group})
    stratum = frame.groupby(["outer", "group"]).ngroup().to_numpy()
    groups = frame.groupby("outer")["group"].transform("nunique").to_numpy()
    weights = outer.map(shares).to_numpy(dtype=np.float64) / groups / np.bincount(stratum)[stratum]
    return weights / weights.sum(), stratum.astype(np.int64)


def _cohort_shares(cohorts: pd.Series, balance: str, weights: Mapping[str, float]) -> dict[str, float]:
    if balance == "cohort":
        raise ConfigError("data.balance=cohort beside data.weights: both say how much each cohort counts; keep one")
    known = sorted(cohorts.unique())
    for name, weight in weights.items():
        if name not in known:
            raise ConfigError(
                f"data.weights.{name}: no scan to train on in a cohort of this name{nearest(name, known)}"
            )
        if not 0 <= weight < np.inf:
            raise ConfigError(f"data.weights.{name}={weight}: expected a share of 0 or more")
    absent = [name for name in known if name not in weights]
    if absent:
        raise ConfigError(f"data.weights: expected a share for each cohort, found none for {', '.join(absent)}")
    if sum(weights.values()) <= 0:
        raise ConfigError("data.weights: every share is 0; expected one above 0")
    return dict(weights)


def _checked(weights: Sequence[float] | np.ndarray, n: int) -> np.ndarray:
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n,) or not (np.isfinite(values) & (values >= 0)).all():
        raise ConfigError(f"weights of scans: expected {n} numbers of 0 or more, found shape {values.shape}")
    return values


def _codes(weights: np.ndarray, strata: Sequence[int] | np.ndarray | None) -> np.ndarray:
    """int64 [n]: scans that share a stratum and a weight share a number."""
    by_weight = np.unique(weights, return_inverse=True)[1]
    if strata is None:
        return by_weight
    by_stratum = np.unique(np.asarray(strata), return_inverse=True)[1]
    return by_weight * len(weights) + by_stratum


def _at_most(shares: np.ndarray, most: np.ndarray, total: int) -> np.ndarray:
    """`total` divided in proportion to `shares`, none above its `most`; the others get what is too much."""
    free = np.ones(len(shares), dtype=bool)
    while free.any():
        left = total - most[~free].sum()
        parts = np.where(free, left * shares / shares[free].sum(), most)
        too_many = free & (parts > most)
        if not too_many.any():
            return parts
        free &= ~too_many
    return most.astype(np.float64)
