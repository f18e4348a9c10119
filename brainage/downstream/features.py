"""What a probe is fitted on: one vector a scan, joined to the table by key and never by order.

n scans, D features, F values in a flattened sample. Embeddings, raw samples and their principal components are all
`Features`, so that every model and every baseline is scored by the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.linalg

from brainage.data.splits import refuse_scoring
from brainage.data.table import KEY, person_keys, read_table, scan_keys, write_atomically
from brainage.errors import DataError

_BLOCK_VALUES = 64_000_000  # values of the samples held as float32 at once: 256 MB
_MOST_RAW_VALUES = 500_000_000  # values of raw features: 4 GB once in float64
_RELATIVE_RANK = 1e-6  # variance, as a share of the largest, below which a component is float32 rounding


@dataclass(frozen=True)
class Features:
    label: str  # the model, e.g. exp, untrained, pca_ridge
    seed: int
    keys: pd.DataFrame  # KEY columns, one row a scan
    values: np.ndarray  # float32 [n, D]
    part: str = ""  # trunk | head of a network; empty where there is none
    seen: np.ndarray | None = None  # bool [n]: was the network trained on this scan's person? None: there is no network

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.keys) != len(self.values):
            raise DataError(
                f"features {self.label!r}: expected one vector a key, found {len(self.keys)} keys and "
                f"values of shape {self.values.shape}"
            )


class Embeddings(NamedTuple):
    """One row a scan: `keys` has the KEY columns, `trunk` and `head` are float32 [n, D]."""

    keys: pd.DataFrame
    trunk: np.ndarray
    head: np.ndarray
    source: str = ""  # what they were computed from, as `write_embeddings` was told
    seen: np.ndarray | None = None  # bool [n]: was the network trained on this scan's person? None: it was not trained

    def features(self, which: Literal["trunk", "head"], label: str, seed: int) -> Features:
        return Features(label, seed, self.keys, self.trunk if which == "trunk" else self.head, which, self.seen)


def join(features: Features, table: pd.DataFrame) -> np.ndarray:
    """float32 [rows of the table, D]: the vector of each scan of `table`, found by its key.

    Vectors of other scans are not used: the table decides who takes part. Raises DataError when a scan of the table has
    no vector or several, when a vector is not finite, and when all vectors are equal (a collapsed encoder); single
    constant columns are left to the probe, since a trunk may have dead units.
    """
    name = f"features {features.label!r} (seed {features.seed})"
    theirs, ours = pd.Index(scan_keys(features.keys)), pd.Index(scan_keys(table))
    for keys, owner in ((theirs, name), (ours, "table")):
        if keys.has_duplicates:
            twice = keys[keys.duplicated()]
            raise DataError(f"{owner}: {len(twice)} scans are there more than once, first {twice[0]}")
    rows = theirs.get_indexer(ours)
    if (rows < 0).any():
        lost = ours[rows < 0]
        raise DataError(f"{name}: {len(lost)} of {len(ours)} scans have no vector, first {lost[0]}; embed them first")
    values = features.values[rows]
    broken = ~np.isfinite(values).all(axis=1)
    if broken.any():
        raise DataError(f"{name}: {int(broken.sum())} vectors hold NaN or infinity, first of scan {ours[broken][0]}")
    if len(values) > 1 and (values == values[0]).all():
        raise DataError(f"{name}: the vectors of all {len(values)} scans are equal: the encoder has collapsed")
    return values


def refuse_seen_features(features: Features, scored: pd.DataFrame, *, allow: bool) -> None:
    """Raise LeakageError when the network behind `features` was trained on people of `scored`, unless `allow`."""
    if features.seen is None:
        return
    seen = pd.Index(scan_keys(features.keys))[np.asarray(features.seen, dtype=bool)]
    people = person_keys(scored)  # all scans of a person: training may have seen another one
    known = people.isin(people[scan_keys(scored).isin(seen)])
    refuse_scoring(scored, known, allow=allow, context=f"{features.label} (seed {features.seed})")


def write_embeddings(
    path: str | Path,
    keys: pd.DataFrame,
    trunk: np.ndarray,
    head: np.ndarray,
    *,
    source: str = "",
    seen: np.ndarray | pd.Series | None = None,
) -> None:
    """Write a parquet file of the KEY columns and the lists `trunk` and `head`, whole or not at all.

    `source` says what they were computed from (a checkpoint, a store) and is kept in the file's metadata. `seen`: a
    bool a scan, whether the network was trained on its person (`was_seen`), so that no file of embeddings forgets whom
    it must not be scored on; None for a network that was not trained.
    """
    if not len(keys) == len(trunk) == len(head):
        raise DataError(f"{path}: expected as many keys as vectors, found {len(keys)}, {len(trunk)} and {len(head)}")
    columns = {
        name: pa.array(keys[name].astype("string").fillna("").to_numpy(dtype=object), pa.string()) for name in KEY
    }
    known = {} if seen is None else {"seen": pa.array(np.asarray(seen, dtype=bool))}
    table = pa.table({**columns, **known, "trunk": _lists(trunk), "head": _lists(head)})
    table = table.replace_schema_metadata({"source": source})
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def read_embeddings(path: str | Path) -> Embeddings:
    """Inverse of `write_embeddings`; DataError naming the file when it is absent, torn or has ragged vectors."""
    frame = read_table(path)
    absent = [name for name in (*KEY, "trunk", "head") if name not in frame]
    if absent:
        raise DataError(f"{path}: column {absent[0]!r} missing; not a file of embeddings")
    vectors = {}
    for name in ("trunk", "head"):
        lengths = set(frame[name].map(len))
        if len(lengths) > 1:
            raise DataError(f"{path}: column {name!r}: expected vectors of one length, found {sorted(lengths)[:5]}")
        vectors[name] = np.stack(list(frame[name])).astype(np.float32) if len(frame) else np.empty((0, 0), np.float32)
    source = (pq.read_schema(path).metadata or {}).get(b"source", b"").decode()
    seen = frame["seen"].to_numpy(dtype=bool) if "seen" in frame else None
    return Embeddings(frame[KEY], vectors["trunk"], vectors["head"], source, seen)


def raw_features(samples: np.ndarray, table: pd.DataFrame, label: str = "ridge") -> Features:
    """Samples [n, ...] as they are, flattened; row i belongs to row i of `table` (an array store and its table).

    Meant for vectors: volumes whose ridge would not fit in memory are refused with a DataError.
    """
    flat = _flat(samples, table, label)
    if flat.size > _MOST_RAW_VALUES:
        raise DataError(f"{label}: {len(flat)} samples of {flat.shape[1]} values are too many for ridge; use pca_ridge")
    return Features(label, 0, table[KEY].reset_index(drop=True), np.asarray(flat, dtype=np.float32))


def pca_features(
    samples: np.ndarray,
    table: pd.DataFrame,
    fit_rows: np.ndarray,
    *,
    intensity: str = "none",
    n_components: int = 100,
    seed: int = 0,
    label: str = "pca_ridge",
    most_fitted: int = 4000,
) -> Features:
    """Principal components of the samples: mean and axes from `fit_rows` (indices) only, scores of every row.

    `intensity` is the rule that the network's input follows (`data.intensity`): none, zscore (each sample by its own
    mean and standard deviation) or standardise (each value by the fitted rows').
    Exact, from the inner products between centred samples, which one pass over blocks of columns sums in float64: no
    axis of F values is ever held, and `samples` [n, ...] may be a memory map. Held at once: about three blocks of 256
    MB and n x `most_fitted` products. The time grows with n x fitted x varying columns; above `most_fitted` scans the
    axes are fitted on that many of them, drawn by `seed`. Fewer components are returned where the scans have no more.
    """
    flat = _flat(samples, table, label)
    fit_rows = np.unique(np.asarray(fit_rows, dtype=np.intp))
    if len(fit_rows) < 2:
        raise DataError(f"{label}: expected at least two scans to fit principal components on, found {len(fit_rows)}")
    if len(fit_rows) > most_fitted:
        fit_rows = np.sort(np.random.default_rng(seed).choice(fit_rows, most_fitted, replace=False))
    products = _centred_products(flat, fit_rows, label, intensity)  # [n, fitted]
    fitted = len(fit_rows)
    last = [max(0, fitted - n_components), fitted - 1]
    variances, axes = scipy.linalg.eigh(products[fit_rows], subset_by_index=last)
    kept = np.flatnonzero(variances > _RELATIVE_RANK * variances[-1])[::-1]
    values = products @ (axes[:, kept] / np.sqrt(variances[kept]))
    return Features(label, seed, table[KEY].reset_index(drop=True), values.astype(np.float32))


def _centred_products(flat: np.ndarray, fit_rows: np.ndarray, label: str, intensity: str) -> np.ndarray:
    """float64 [n, fitted]: (x - mean).(x' - mean) of every scan with every fitted one."""
    products = np.zeros((len(flat), len(fit_rows)))
    own = np.array([_mean_and_sd(row) if intensity == "zscore" else (0, 1) for row in flat], dtype=np.float32)
    size = max(1, _BLOCK_VALUES // len(flat))
    for start in range(0, flat.shape[1], size):
        block = np.asarray(flat[:, start : start + size], dtype=np.float32)
        if not np.isfinite(block).all():
            row = int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
            raise DataError(f"{label}: the sample in row {row} holds NaN or infinity")
        # A column that is constant over the fitted scans is in no axis: leaving out the background saves most work.
        varying = (block[fit_rows] != block[fit_rows[0]]).any(axis=0)
        if intensity != "zscore":
            block = block[:, varying]
        block = (block - own[:, :1]) / own[:, 1:]
        block -= block[fit_rows].mean(axis=0, dtype=np.float64).astype(np.float32)
        if intensity == "standardise":
            block /= block[fit_rows].std(axis=0)
        products += block @ block[fit_rows].T
    if not products.any():
        raise DataError(f"{label}: the fitted samples are all equal; there are no principal components")
    return products


def _mean_and_sd(row: np.ndarray) -> tuple[float, float]:
    values = row.astype(np.float32)
    return float(values.mean()), max(float(values.std()), 1e-6)


def _flat(samples: np.ndarray, table: pd.DataFrame, label: str) -> np.ndarray:
    """A view [n, F]."""
    if len(samples) != len(table):
        raise DataError(f"{label}: expected one sample a row of the table, found {len(samples)} and {len(table)}")
    return samples.reshape(len(samples), -1)


def _lists(vectors: np.ndarray) -> pa.ListArray:
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    n, D = vectors.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32) * D), pa.array(vectors.ravel()))
