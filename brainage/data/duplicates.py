"""The same brain in two array stores, whatever it is called there: found by what its samples look like.

1. Signature of a sample: a volume (every `step`-th voxel, so that about 3 mm lie between) averaged in blocks of about
   16 mm, then z-scored, so that gain, offset, noise and sub-voxel shifts hardly count; a vector as it is.
2. Whitening: each store's mean is taken away, and what is left is divided by its spread along each of the first
   K = min(256, people / 2) principal directions of the largest store. What all brains share, and age, sex and scanner,
   which move many brains together, then weigh no more than any other direction; what an export does to all its brains
   is in its mean.
3. Similarity of two scans: the cosine. Of two people it is about normal around 0 with a standard deviation below
   1 / sqrt(K), as of random directions; of one person it is near 1. The threshold follows from that: the cosine that no
   pair of this many different people would pass by chance but with probability `CHANCE` in all, and at least LEAST.

Measured with `tests/data/test_overlap.py` and its slow twin on simulated grey matter and T1 at 4 and 8 mm: 200 people
and re-exports with gain, power 3 %, 0.2 degrees and 0.2 mm: 98 to 100 % found, least similarity of a re-export 0.58 to
0.81, largest of two different people 0.33, threshold 0.63 (9,950 pairs). Two visits a year apart: 56 to 100 % found.
Real cortical thickness of 558 people in two halves: largest of two people 0.50, threshold 0.70 (90,000 pairs).
The correlation of the full arrays does not separate (grey matter: 0.991 to 1 within, up to 0.996 between people): it is
written beside each pair, and decides nothing.

Legend: n scans, D values of a signature, K directions kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.data.array_store import ArrayStore
from brainage.data.overlap import OTHER, finish_pairs, people_of
from brainage.data.table import PERSON, person_keys

BLOCK_MM, STEP_MM = 16.0, 3.0
MOST_DIRECTIONS, PEOPLE_A_DIRECTION = 256, 2
CHANCE, PERHAPS = 1e-6, 1e-2  # probability that any pair of different people passes: as `same`, as `possible`
LEAST = 0.5  # similarity of `same`, however many people
USELESS = 0.97  # a threshold above this finds nothing
SHRINK = 2.0  # scans of the largest store's mean that each store's own is mixed with
_LONGEST = 4096  # values of a vector that are taken one by one; of a longer one, means of neighbours
_BLOCK_ROWS = 2048

Progress = Callable[[int, int], None]


class Found(NamedTuple):
    """Pairs of people, and a sentence on what could be seen."""

    pairs: pd.DataFrame  # PAIR_COLUMNS of `brainage.data.overlap`
    said: str


def find_duplicates(
    stores: Sequence[ArrayStore],
    tables: Sequence[pd.DataFrame],
    readers: Mapping[str, str],
    *,
    signatures: Sequence[np.ndarray] | None = None,
) -> Found:
    """People of different cohorts with equal or similar samples.

    tables: for each store its rows under the names of the mixture, with `digest`. readers: see `pairs_by_id`.
    signatures: of each store, where they are at hand.
    """
    people = people_of(pd.concat(tables, ignore_index=True))
    identical = _identical(tables)
    parts = [signatures_of(store) for store in stores] if signatures is None else list(signatures)
    white, kept = whiten(parts, _people(tables))
    pairs = sum(len(a) * len(b) for place, a in enumerate(parts) for b in parts[place + 1 :])
    same, possible = least_similarity(kept, pairs, CHANCE), least_similarity(kept, pairs, PERHAPS)
    if same > USELESS:
        said = f"{max(_people(tables))} people are too few to find similar samples: only identical ones were looked for"
        return Found(finish_pairs(identical, people, readers), said)
    similar = [
        _similar(tables[a], tables[b], white[a], white[b], possible, same)
        for a in range(len(stores))
        for b in range(a + 1, len(stores))
    ]
    found = finish_pairs(pd.concat([identical, *similar], ignore_index=True), people, readers)
    agreeing = (found["sexes"] != "differ") & (found["age_gap_years"] <= 1)
    found = found[(found["verdict"] == "same") | agreeing].reset_index(drop=True)
    said = f"{pairs} pairs of scans compared in {kept} directions; one person from a similarity of {same:.2f}"
    return Found(with_correlations(found, stores, tables), said)


def signatures_of(store: ArrayStore, on_progress: Progress | None = None) -> np.ndarray:
    """float32 [n, D] of the samples of a store; reads each row once."""
    values = []
    rows = store.arrays
    for number in range(len(store)):
        values.append(_volume(rows[number], store.contract.spacing_mm) if store.contract.kind == "volume" else
                      _vector(rows[number]))  # fmt: skip
        if on_progress:
            on_progress(number + 1, len(store))
    return np.stack(values)


def whiten(parts: Sequence[np.ndarray], people: Sequence[int]) -> tuple[list[np.ndarray], int]:
    """Unit rows [n, K] of each part's signatures, float32, and K; `people` are in each part."""
    largest = parts[int(np.argmax(people))]
    centre = largest.mean(0, dtype=np.float64)
    scale = largest.std(0, dtype=np.float64)
    used = scale > 1e-6 * scale.max(initial=0)
    most = max(1, min(MOST_DIRECTIONS, max(people) // PEOPLE_A_DIRECTION, len(largest), int(used.sum())))
    axes, spread = _directions(((largest - centre)[:, used] / scale[used]).astype(np.float32), most)
    turned = (axes / spread / scale[used][:, None]).astype(np.float32)
    white = []
    for part in parts:
        own = (part.sum(0, dtype=np.float64) + SHRINK * centre) / (len(part) + SHRINK)
        values = (part - own)[:, used].astype(np.float32) @ turned
        white.append(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))
    return white, turned.shape[1]


def least_similarity(directions: int, pairs: int, chance: float) -> float:
    """Cosine that none of `pairs` pairs of random directions passes, but with probability `chance`; LEAST or more.

    P(cosine > r) of two random unit vectors in K dimensions is I(1 - r^2; (K - 1) / 2, 1/2) / 2, I being the
    regularised incomplete beta function.

    >>> round(least_similarity(66, 9950, 1e-6), 2), least_similarity(2000, 10, 1e-6)
    (0.68, 0.5)
    """
    from scipy.special import betaincinv

    if directions < 2:
        return 1.0
    share = min(2 * chance / max(pairs, 1), 1.0)
    return max(LEAST, float(np.sqrt(1 - betaincinv((directions - 1) / 2, 0.5, share))))


def similar_rows(a: np.ndarray, b: np.ndarray, least: float) -> pd.DataFrame:
    """`row`, `other_row` and `similarity` of all pairs of unit rows with a product of `least` or more, by blocks."""
    found = []
    for start in range(0, len(a), _BLOCK_ROWS):
        for other in range(0, len(b), _BLOCK_ROWS):
            products = a[start : start + _BLOCK_ROWS] @ b[other : other + _BLOCK_ROWS].T
            rows, others = np.nonzero(products >= least)
            found.append(np.stack([rows + start, others + other, products[rows, others]], axis=1))
    every = np.concatenate(found) if found else np.empty((0, 3))
    frame = pd.DataFrame(every, columns=["row", "other_row", "similarity"])
    return frame.astype({"row": "int64", "other_row": "int64"})


def with_correlations(
    pairs: pd.DataFrame, stores: Sequence[ArrayStore], tables: Sequence[pd.DataFrame]
) -> pd.DataFrame:
    """`pairs` with the correlation of the full arrays of the two people's first scans; a fact for people to look at."""
    where = {
        person: (place, row)
        for place, table in enumerate(tables)
        for row, person in reversed(list(enumerate(person_keys(table))))
    }
    correlations = []
    for ours, theirs in zip(person_keys(pairs), person_keys(pairs[OTHER].set_axis(PERSON, axis=1)), strict=True):
        one, other = (stores[where[p][0]].read([where[p][1]]).ravel().astype(np.float32) for p in (ours, theirs))
        both = np.stack([one, other]).astype(np.float64)
        both -= both.mean(1, keepdims=True)
        product = np.sqrt((both[0] ** 2).sum() * (both[1] ** 2).sum())
        correlations.append(round(float((both[0] * both[1]).sum() / product), 4) if product else np.nan)
    return pairs.assign(correlation=np.array(correlations, dtype="float64"))


def _similar(
    table: pd.DataFrame, other: pd.DataFrame, a: np.ndarray, b: np.ndarray, possible: float, same: float
) -> pd.DataFrame:
    """PERSON, OTHER, similarity (of the most similar scans), rule and verdict."""
    rows = similar_rows(a, b, possible)
    ours = table[PERSON].iloc[rows["row"]].reset_index(drop=True)
    theirs = other[PERSON].iloc[rows["other_row"]].set_axis(OTHER, axis=1).reset_index(drop=True)
    found = pd.concat([ours, theirs, rows["similarity"].round(4)], axis=1)
    found = found.sort_values("similarity", ascending=False, kind="stable").drop_duplicates([*PERSON, *OTHER])
    return found.assign(rule="content", verdict=np.where(found["similarity"] >= same, "same", "possible"))


def _identical(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """People of different cohorts who share a sample to the last bit."""
    scans = pd.concat([table[[*PERSON, "digest"]].assign(place=k) for k, table in enumerate(tables)])
    theirs = scans.rename(columns={**dict(zip(PERSON, OTHER, strict=True)), "place": "other_place"})
    met = scans.merge(theirs, on="digest")
    met = met[met["place"] < met["other_place"]].drop_duplicates([*PERSON, *OTHER])
    return met[[*PERSON, *OTHER]].assign(rule="identical", verdict="same", similarity=1.0)


def _volume(sample: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """float32 [D] of a sample (1, X, Y, Z)."""
    steps = [max(1, int(STEP_MM // mm)) for mm in spacing_mm]
    thin = np.asarray(sample)[0, :: steps[0], :: steps[1], :: steps[2]].astype(np.float32)
    edges = [max(1, round(BLOCK_MM / (mm * step))) for mm, step in zip(spacing_mm, steps, strict=True)]
    whole = [-(-length // edge) for length, edge in zip(thin.shape, edges, strict=True)]
    padded = np.zeros([n * edge for n, edge in zip(whole, edges, strict=True)], np.float32)
    padded[tuple(map(slice, thin.shape))] = thin
    (x, y, z), (a, b, c) = whole, edges
    means = padded.reshape(x, a, y, b, z, c).mean(axis=(1, 3, 5)).ravel()
    return (means - means.mean()) / max(float(means.std()), 1e-12)


def _vector(sample: np.ndarray) -> np.ndarray:
    values = np.asarray(sample).ravel().astype(np.float32)
    if len(values) <= _LONGEST:
        return values
    ends = np.linspace(0, len(values), _LONGEST // 2 + 1).astype(int)
    return np.add.reduceat(values, ends[:-1]) / np.diff(ends)


def _directions(centred: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal axes [D, K] and the spread along each; from the smaller of the two Gram matrices."""
    import scipy.linalg

    n, D = centred.shape
    products = (centred.T @ centred if n >= D else centred @ centred.T).astype(np.float64)
    size = len(products)
    variances, axes = scipy.linalg.eigh(products, subset_by_index=[size - most, size - 1])
    good = variances > 1e-6 * max(variances[-1], 1e-30)
    variances, axes = variances[good], axes[:, good]
    if n < D:
        axes = centred.T @ (axes / np.sqrt(variances))
    return axes, np.sqrt(variances / n)


def _people(tables: Sequence[pd.DataFrame]) -> list[int]:
    return [len(table.drop_duplicates(PERSON)) for table in tables]
