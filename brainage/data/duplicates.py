"""The same brain in two array stores, whatever it is called there: found by what its samples look like.

1. Signature of a sample: a volume (every `step`-th voxel, so that about 3 mm lie between) averaged in blocks of about
   16 mm, then z-scored, so that gain, offset, noise and sub-voxel shifts hardly count; a vector as it is.
2. Whitening: each store's mean is taken away, and what is left is divided by its spread along the first K principal
   directions, K at most 256 (`whitenings`). What all brains share, and age, sex and scanner, which move many brains
   together, then weigh no more than any other direction; what an export does to all its brains is in its mean.
3. Similarity of two scans: the cosine. Of two people it is about normal around 0 with a standard deviation of about
   1 / sqrt(K), as of random directions; of one person it is near 1. The threshold follows from that: the cosine that no
   pair of so many random directions passes but with probability `CHANCE` in all, and at least LEAST.

Measured on simulated grey matter and T1 (`BrainSimulator`, 8 and 4 mm) and on real cortical thickness:
- two people: of 16 million pairs (4,000 x 4,000, 8 mm, K 256) the most similar had 0.36 (grey), 0.41 (T1); threshold
  0.50. 200 x 150 (K 100): 0.45 and 0.57; 0.60. Real thickness (IXI, 300 x 300 of 558 people, 68 regions): 0.56; 0.71.
- one person exported again with gain, in half precision: all found, 0.97 or more. Also with a power of 1 +- 3 %, 0.2 mm
  and 0.2 degrees: 88 to 98 % (200 people), 98 % (1,500). With a power of 1 +- 10 % and 0.4 mm: 78 to 90 %.
- one person a year later: grey 94 to 100 %, T1 30 to 86 % (200 people); at another site grey 64 to 100 %, T1 4 to 48 %.
So what is found is one person; that nobody is found is no proof, least of all for raw T1 and for cohorts of less than a
hundred people. The correlation of the full arrays does not tell people apart (grey matter: 0.98 to 1 within, up to
0.996 between people): it is written beside each pair, and decides nothing.

Cost: 5 ms a volume of 1.5 or 1 mm, once; 20,000 x 20,000 scans (2,535 values each) then take 54 s on one busy core and
1.1 GB. Reading grows with n, whitening with n D^2, the search with the pairs.

Legend: n scans, D values of a signature, K directions kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.data.array_store import ArrayStore
from brainage.data.overlap import OTHER, finish_pairs, people_of
from brainage.data.table import PERSON, person_keys

BLOCK_MM, STEP_MM = 16.0, 3.0
MOST_DIRECTIONS = 256
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
    parts = [signatures_of(store) for store in stores] if signatures is None else list(signatures)
    pairs = sum(len(a) * len(b) for place, a in enumerate(parts) for b in parts[place + 1 :])
    looks = [_look(tables, white, pairs) for white in whitenings(parts, _people(tables))]
    least = min(look.least for look in looks)
    found = pd.concat([_identical(tables), *(look.pairs for look in looks)], ignore_index=True)
    found = found.sort_values("margin", ascending=False, kind="stable").drop(columns="margin")
    found = finish_pairs(found, people, readers)
    agreeing = (found["sexes"] != "differ") & (found["age_gap_years"] <= 1)
    found = found[(found["verdict"] == "same") | agreeing].reset_index(drop=True)
    said = f"{pairs} pairs of scans compared; one person from a similarity of {least:.2f}"
    if least > USELESS:
        said = f"{max(_people(tables))} people are too few to find similar samples: only identical ones were looked for"
    return Found(with_correlations(found, stores, tables), said)


def signatures_of(store: ArrayStore, on_progress: Progress | None = None) -> np.ndarray:
    """float32 [n, D] of the samples of a store; reads each row once."""
    values = []
    rows = store.arrays
    for number in range(len(store)):
        values.append(volume_signature(rows[number], store.contract.spacing_mm) if store.contract.kind == "volume" else
                      _vector(rows[number]))  # fmt: skip
        if on_progress:
            on_progress(number + 1, len(store))
    return np.stack(values)


def whitenings(parts: Sequence[np.ndarray], people: Sequence[int]) -> Iterator[list[np.ndarray]]:
    """Unit rows [n, K] of each part's signatures, float32: by the spread of the largest part, then by that of all.

    The first does not know what an export does to some brains only, the second needs more people to be of use: half and
    a third of them bound K. `people` are in each part.
    """
    largest = int(np.argmax(people))
    own = [_without_mean(part, parts[largest]) for part in parts]
    yield whiten(own, own[largest : largest + 1], people[largest] // 2)
    yield whiten(own, own, sum(people) // 3)


def whiten(parts: Sequence[np.ndarray], reference: Sequence[np.ndarray], most: int) -> list[np.ndarray]:
    """Unit rows [n, K] of each part, along the first K <= `most` principal directions of the rows of `reference`."""
    n = sum(map(len, reference))
    scale = np.sqrt(sum(np.einsum("nd,nd->d", rows, rows, dtype=np.float64) for rows in reference) / max(n, 1))
    weight = np.where(scale > 1e-6 * scale.max(initial=0), 1 / np.maximum(scale, 1e-30), 0).astype(np.float32)
    most = max(1, min(MOST_DIRECTIONS, most, n, int((weight > 0).sum())))
    axes, spread = _directions(reference, weight, most)
    turned = (weight[:, None] * axes / spread).astype(np.float32)
    white = [part @ turned for part in parts]
    return [values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12) for values in white]


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
    for start in _starts(a):
        for other in _starts(b):
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


class _Look(NamedTuple):
    pairs: pd.DataFrame  # PERSON, OTHER, similarity, margin above the threshold, rule, verdict
    least: float  # similarity of one person


def _look(tables: Sequence[pd.DataFrame], white: Sequence[np.ndarray], pairs: int) -> _Look:
    """People whose scans are similar in one whitening; of several scans the most similar ones count."""
    directions = white[0].shape[1]
    same, possible = (least_similarity(directions, pairs, chance / 2) for chance in (CHANCE, PERHAPS))
    found = []
    for place, one in enumerate(white if same <= USELESS else []):
        for other in range(place + 1, len(white)):
            rows = similar_rows(one, white[other], possible)
            ours = tables[place][PERSON].iloc[rows["row"]].reset_index(drop=True)
            theirs = tables[other][PERSON].iloc[rows["other_row"]].set_axis(OTHER, axis=1).reset_index(drop=True)
            found.append(pd.concat([ours, theirs, rows["similarity"].round(4)], axis=1))
    every = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*PERSON, *OTHER, "similarity"])
    margin = every["similarity"].astype("float64") - same
    verdict = np.where(margin >= 0, "same", "possible")
    return _Look(every.assign(margin=margin, rule="content", verdict=verdict), same)


def _identical(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """People of different cohorts who share a sample to the last bit."""
    scans = pd.concat([table[[*PERSON, "digest"]].assign(place=k) for k, table in enumerate(tables)])
    theirs = scans.rename(columns={**dict(zip(PERSON, OTHER, strict=True)), "place": "other_place"})
    met = scans.merge(theirs, on="digest")
    met = met[met["place"] < met["other_place"]].drop_duplicates([*PERSON, *OTHER])
    return met[[*PERSON, *OTHER]].assign(rule="identical", verdict="same", similarity=1.0, margin=1.0)


def volume_signature(sample: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
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


def _without_mean(part: np.ndarray, largest: np.ndarray) -> np.ndarray:
    mean = part.sum(0, dtype=np.float64) + SHRINK * largest.mean(0, dtype=np.float64)
    return part - (mean / (len(part) + SHRINK)).astype(np.float32)


def _directions(reference: Sequence[np.ndarray], weight: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal axes [D, K] of the weighted rows and the spread along each, from the smaller of the Gram matrices."""
    import scipy.linalg

    n, D = sum(map(len, reference)), len(weight)
    blocks = (rows[start : start + _BLOCK_ROWS] * weight for rows in reference for start in _starts(rows))
    if n >= D:
        products = np.zeros((D, D))
        for block in blocks:
            products += block.T @ block
    else:
        every = np.concatenate(list(blocks))
        products = (every @ every.T).astype(np.float64)
    size = len(products)
    variances, axes = scipy.linalg.eigh(products, subset_by_index=[size - most, size - 1], overwrite_a=True)
    good = variances > 1e-6 * max(variances[-1], 1e-30)
    variances, axes = variances[good], axes[:, good]
    if n < D:
        axes = every.T @ (axes / np.sqrt(variances))
    return axes, np.sqrt(variances / n)


def _starts(rows: np.ndarray) -> range:
    return range(0, len(rows), _BLOCK_ROWS)


def _people(tables: Sequence[pd.DataFrame]) -> list[int]:
    return [len(table.drop_duplicates(PERSON)) for table in tables]
