"""Permutation tests whose unit is the person: all scans of somebody move together.

n scans, m shuffles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def person_shuffles(
    persons: np.ndarray, *, shuffles: int, seed: int | Sequence[int], strata: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """`shuffles` times the rows [n] whose labels each row gets: `labels[rows]` are the shuffled labels.

    People with the same number of scans, and of the same stratum where `strata` [n] is given (by a person's first row),
    exchange all their labels in the order of their rows: whole-block exchange (Winkler et al. 2015), under which every
    label is given away as often as before. Somebody whose number of scans nobody else has keeps the own labels.

    >>> rows = next(person_shuffles(np.array(["a", "b", "b", "c"]), shuffles=1, seed=1))
    >>> rows[1:3].tolist(), sorted(rows.tolist())
    ([1, 2], [0, 1, 2, 3])
    """
    blocks = exchangeable(persons, strata)
    generator = np.random.default_rng(seed)
    for _ in range(shuffles):
        rows = np.arange(len(persons))
        for block in blocks:
            rows[block] = block[generator.permutation(len(block))]
        yield rows


def exchangeable(persons: np.ndarray, strata: np.ndarray | None = None) -> list[np.ndarray]:
    """Rows [people, scans] of the people who may exchange their labels, one array for each kind of person."""
    _, codes, counts = np.unique(persons, return_inverse=True, return_counts=True)
    order = np.argsort(codes, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    first = order[starts]
    kinds = counts if strata is None else np.unique(strata, return_inverse=True)[1][first] * (counts.max() + 1) + counts
    return [
        order[starts[kinds == kind][:, None] + np.arange(counts[kinds == kind][0])]
        for kind in np.unique(kinds)
        if (kinds == kind).sum() > 1
    ]


def permutation_p(observed: float, shuffled: np.ndarray) -> float:
    """(b + 1) / (m + 1) with b shuffles that reach the observed value: never 0 (Phipson and Smyth 2010, equation 2).

    >>> permutation_p(3.0, np.array([1.0, 2.0, 3.0, 4.0]))
    0.6
    """
    reached = shuffled >= observed - 1e-12 * max(1.0, abs(observed))
    return float((reached.sum() + 1) / (len(shuffled) + 1))
