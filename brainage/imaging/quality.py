"""Quality of every scan of a store, computed from its samples: measures, flags, and the file that keeps them.

Columns, beside the key: qc_coverage, qc_outside, qc_level, qc_spread, qc_asymmetry, qc_mean_corr, qc_side_corr,
qc_level_z, qc_age_z, qc_duplicates (scans with the same bytes), qc_flags (text, NA: nothing suspicious) and
qc_flag_count. What each means: `brainage.imaging.quality_measures`; from where on it is flagged: `quality_limits`.
Cohorts of a joined store are judged one by one. Nothing is ever left out here: that takes a rule of `data.exclude`.

The age score is for finding wrong ages and swapped people. Patients look older than they are, so that excluding by it
would remove what a study of brain age is about.

Legend: V voxels (or features) of a sample, M of them inside the reference mask, n scans of one cohort.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from brainage.data.files import read_table, write_table
from brainage.data.table import KEY, scan_keys
from brainage.imaging.contract import InputContract
from brainage.imaging.quality_limits import FEWEST_SCANS, flags, is_empty
from brainage.imaging.quality_measures import (
    Reference,
    as_float,
    bright_value,
    centred,
    crude_age,
    mean_correlation,
    measure_volume,
    reference_of,
    side_correlations,
    template_mask,
)
from brainage.statistics.robust import limits, z_given

VERSION = 1  # raise it when equal samples get other measures or flags: files on disk are then computed again
QUALITY = "quality.parquet"
MEASURES = (
    "qc_coverage", "qc_outside", "qc_level", "qc_spread", "qc_asymmetry", "qc_mean_corr", "qc_side_corr",
    "qc_level_z", "qc_age_z", "qc_duplicates",
)  # fmt: skip
COLUMNS = (*MEASURES, "qc_flags", "qc_flag_count")
FEWEST_AGES = 40  # healthy people of known age, below which no age can be called implausible
_BLOCK_BYTES = 2**26  # of samples read at once
Progress = Callable[[int, int], None]


class Samples(Protocol):
    """What is needed of a store (`brainage.data.array_store.ArrayStore`, or several joined)."""

    path: Path
    table: pd.DataFrame
    contract: InputContract

    @property
    def checksum(self) -> str: ...

    def read(self, indices: Any, out: np.ndarray | None = None) -> np.ndarray: ...


def assess_store(store: Samples, *, on_progress: Progress | None = None) -> pd.DataFrame:
    """KEY and COLUMNS of every scan, in the order of the store; `on_progress(done, total)` counts both passes.

    Reads every sample twice, holding 64 MiB of them and two volumes in float64: memory does not grow with the number of
    scans but for about 1,000 pooled values each.
    """
    table = store.table.reset_index(drop=True)
    advance = _counter(2 * len(table), on_progress)
    parts = []
    for _, rows in table.groupby("cohort", sort=False).indices.items():
        people = table.iloc[rows].reset_index(drop=True)
        assess = _volumes if store.contract.kind == "volume" else _vectors
        measures, features = assess(store, np.asarray(rows), advance)
        measures = pd.concat([measures, _plausibility(measures, features, people)], axis=1)
        measures["qc_duplicates"] = _duplicates(people)
        measures["qc_flags"] = flags(measures)
        measures["qc_flag_count"] = measures["qc_flags"].str.count(",").add(1).fillna(0).astype("float64")
        parts.append(pd.concat([people[KEY], measures.reindex(columns=list(COLUMNS))], axis=1).set_index(rows))
    return pd.concat(parts).sort_index().reset_index(drop=True)


def write_quality(store: Samples, *, on_progress: Progress | None = None) -> pd.DataFrame:
    """The quality of a store from its `quality.parquet`, computed and written first where that is absent or not of
    these samples, ages and this version."""
    kept = read_quality(store)
    if kept is not None:
        return kept
    found = assess_store(store, on_progress=on_progress)
    write_table(found.assign(quality_of=quality_key(store)), Path(store.path) / QUALITY)
    return found


def unjudged(quality: pd.DataFrame) -> list[str]:
    """Lines on the cohorts that are too small for limits of their own: no flag there is not the same as good."""
    lines = []
    for cohort, part in quality.groupby("cohort", sort=True):
        if len(part) < FEWEST_SCANS:
            lines.append(
                f"{cohort}: {len(part)} scans are too few for limits of their own ({FEWEST_SCANS} or more): only empty "
                "and duplicate scans are flagged; look at all of them"
            )
        elif part["qc_age_z"].notna().sum() == 0:
            lines.append(f"{cohort}: fewer than {FEWEST_AGES} people of known age: no age can be called implausible")
    return lines


def read_quality(store: Samples) -> pd.DataFrame | None:
    """What `write_quality` kept for these samples, ages and sexes; None where there is nothing, or of other ones."""
    path = Path(store.path) / QUALITY
    if not path.is_file():
        return None
    kept = read_table(path)
    if "quality_of" not in kept or not kept["quality_of"].eq(quality_key(store)).all() or len(kept) != len(store.table):
        return None
    return kept.drop(columns="quality_of").astype({"qc_flags": "string"})


def quality_key(store: Samples) -> str:
    """16 hex digits of what the measures depend on: samples, their order, and who is how old."""
    people = [scan_keys(store.table).tolist()]
    people += [store.table[name].astype("string").fillna("").tolist() for name in ("age_years", "sex", "diagnosis")]
    text = json.dumps([VERSION, store.checksum, people])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass
class _First:
    """What the first pass leaves."""

    bright: np.ndarray  # [n]
    total: np.ndarray  # [M] sum of all scans, each over its bright value
    reference: Reference


def _volumes(store: Samples, rows: np.ndarray, advance: Callable[[], None]) -> tuple[pd.DataFrame, np.ndarray]:
    first = _first_pass(store, rows, advance)
    reference, total = first.reference, centred(first.total)
    total_ss = float(np.dot(total.astype(np.float64), total))
    measures, pooled = [], np.empty((len(rows), reference.cells), np.float32)
    for place, volume in enumerate(_stream(store, rows)):
        measured, scaled = measure_volume(volume, reference, float(first.bright[place]))
        measured["qc_mean_corr"] = mean_correlation(scaled, total, total_ss) if len(rows) > 2 else np.nan
        pooled[place] = reference.pool(scaled)
        measures.append(measured)
        advance()
    frame = pd.DataFrame(measures)
    frame["qc_side_corr"] = side_correlations(pooled, reference)
    return frame, pooled


def _first_pass(store: Samples, rows: np.ndarray, advance: Callable[[], None]) -> _First:
    """The scans' brightness and their sum; without a template also the mask: signal in more than half of them."""
    mask = template_mask(store.contract)
    voxels = int(np.prod(store.contract.shape))
    inside = slice(None) if mask is None else np.flatnonzero(mask)
    total = np.zeros(voxels if mask is None else int(mask.sum()))
    signal = np.zeros(voxels if mask is None else 0, np.int32)
    bright = np.zeros(len(rows))
    for place, volume in enumerate(_stream(store, rows)):
        bright[place] = bright_value(volume)
        if bright[place] > 0:
            total += volume[inside] / np.float32(bright[place])
            if mask is None:
                signal += volume > 0.05 * bright[place]
        advance()
    if mask is None:
        mask = signal > (bright > 0).sum() / 2
        total = total[mask]
    return _First(bright, total, reference_of(mask, store.contract))


def _vectors(store: Samples, rows: np.ndarray, advance: Callable[[], None]) -> tuple[pd.DataFrame, np.ndarray]:
    """Feature vectors are few numbers: held whole, each feature in robust scales, so that no unit counts more.

    qc_coverage is the share of features that are not 0, qc_level the mean of the features over the cohort's medians,
    qc_spread the spread of the features in robust scales; there is no mask and there are no sides.
    """
    raw = np.empty((len(rows), *store.contract.shape), np.float64)
    for place, vector in enumerate(_stream(store, rows)):
        raw[place] = vector
        advance()
    ends = np.array([limits(column, 1.0) for column in raw.T])
    width = (ends[:, 1] - ends[:, 0]) / 2
    scaled = np.divide(raw - ends.mean(1), width, out=np.zeros_like(raw), where=width > 0)
    centre = np.median(raw, axis=0)
    sized = np.abs(centre) > 2 * width  # a level needs features with a size: thicknesses have one, curvatures not
    measures = []
    for vector, z in zip(raw, scaled, strict=True):
        measures.append({
            "qc_coverage": float((vector != 0).mean()),
            "qc_level": float((vector[sized] / centre[sized]).mean()) if sized.any() else np.nan,
            "qc_spread": float(np.std(z)) if np.ptp(vector) > 0 else 0.0,
        })  # fmt: skip
        advance()
    return pd.DataFrame(measures), scaled.astype(np.float32)


def _plausibility(measures: pd.DataFrame, features: np.ndarray, people: pd.DataFrame) -> pd.DataFrame:
    """qc_level_z and qc_age_z: the level, and an age read from the image, given age and sex of the healthy."""
    age = people["age_years"].to_numpy(float)
    male = people["sex"].map({"M": 1.0, "F": 0.0}).astype("float64").fillna(0.5).to_numpy()
    usable = np.isfinite(age) & ~is_empty(measures).to_numpy()
    healthy = usable & people["diagnosis"].fillna("CN").eq("CN").to_numpy(bool)
    rows = healthy if healthy.sum() >= FEWEST_AGES else usable
    z = pd.DataFrame(np.nan, index=measures.index, columns=["qc_level_z", "qc_age_z"])
    if rows.sum() >= FEWEST_AGES:
        level = measures["qc_level"].to_numpy(float)
        z["qc_level_z"] = z_given(np.log(np.where(level > 0, level, np.nan)), age, male, rows)
        read = crude_age(np.where(usable[:, None], features, np.nan), age, rows)
        z["qc_age_z"] = z_given(read, age, male, rows)
    return z


def _duplicates(people: pd.DataFrame) -> np.ndarray:
    """[n] how many other scans of the cohort hold the same bytes; NaN where the store keeps no digests."""
    if "digest" not in people:
        return np.full(len(people), np.nan)
    return people.groupby("digest")["digest"].transform("size").to_numpy(float) - 1


def _stream(store: Samples, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Each sample as float32 [V]; the array is used again for the next one."""
    contract = store.contract
    size = max(1, _BLOCK_BYTES // max(1, int(np.prod(contract.shape)) * contract.dtype.itemsize))
    block = np.empty((min(size, len(rows)), *contract.shape), contract.dtype)
    flat = np.empty(int(np.prod(contract.shape)), np.float32)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        for sample in store.read(part, out=block[: len(part)]):
            yield as_float(sample, flat)


def _counter(total: int, on_progress: Progress | None) -> Callable[[], None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if on_progress:
            on_progress(done, total)

    return advance
