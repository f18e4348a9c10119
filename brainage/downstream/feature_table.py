"""A table of features that some other tool wrote: read, checked, and joined to the scans of a cohort by id.

Every id is compared without regard to case and without `sub-`, `ses-` or `run-` in front. Leading zeros are disregarded
only where that leaves one scan on either side (`sub-7` is person `007` unless there is a person `07` too).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from brainage.data.files import as_text
from brainage.data.table import COLUMNS, KEY, scan_keys
from brainage.downstream.features import Features
from brainage.errors import DataError
from brainage.runtime import warn

SEPARATORS = {".csv": ",", ".tsv": "\t"}
PARQUET = (".parquet", ".pq")
FACTS = {*COLUMNS, "age", "sex", "gender", "group", "dx"} - set(KEY)  # of a person: no tool's features
VECTOR, SEEN = "trunk", "seen"  # columns of the project's own files of embeddings
_PREFIX = re.compile(r"^(sub|ses|run)-")
_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")


def read_feature_table(path: str | Path, table: pd.DataFrame, *, label: str, seed: int = 0) -> Features:
    """The features of the scans of `table` that a CSV, TSV or parquet file has vectors of.

    The file has a column participant_id, where needed also session_id, run and cohort, and one numeric column a
    feature, or (parquet) one column of lists. A file of `brainage embed` is read too: its trunk, and whom its network
    was trained on; of any other tool nobody knows that (`Features.seen` is None). Rows of scans that are not in `table`
    are warned of and not used. Raises DataError on ids that do not join or are there twice, on columns that hold text,
    NaN or infinity, and on facts about people among the features (an age would predict the age).
    """
    path = Path(path)
    frame = _read(path)
    frame = frame.rename(columns={name: name.lower() for name in frame.columns if name.lower() in KEY})
    if "participant_id" not in frame:
        raise DataError(f"{path}: column 'participant_id' missing; found {', '.join(list(frame.columns)[:5])}")
    seen = frame.pop(SEEN) if SEEN in frame and frame[SEEN].dtype == bool else None
    values = _values(frame.drop(columns=[name for name in KEY if name in frame]), path)
    rows = _joined(frame, table, path)  # [rows of the table], -1 where there is no vector
    there = np.flatnonzero(rows >= 0)
    return Features(
        label, seed, table.iloc[there][KEY].reset_index(drop=True), values[rows[there]],
        seen=None if seen is None else seen.to_numpy(dtype=bool)[rows[there]],
    )  # fmt: skip


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: file not found")
    kind = path.suffix.lower()
    if kind not in (*SEPARATORS, *PARQUET):
        raise DataError(f"{path}: expected a file that ends in {', '.join((*SEPARATORS, *PARQUET))}")
    try:
        if kind in PARQUET:
            frame = _flat(pq.read_table(path))
        else:
            names = pd.read_csv(path, sep=SEPARATORS[kind], nrows=0, dtype=str).columns
            ids = {name: str for name in names if str(name).lower() in KEY}  # 007 stays 007
            frame = pd.read_csv(path, sep=SEPARATORS[kind], dtype=ids, index_col=False)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: not readable as a table ({' '.join(str(error).split())[:200]})") from error
    frame.columns = frame.columns.astype(str)
    if frame.empty:
        raise DataError(f"{path}: no rows; expected one row a scan")
    return frame


def _flat(table: pa.Table) -> pd.DataFrame:
    """A column of lists becomes a column a value; of the project's own two the trunk is read."""
    lists = [field.name for field in table.schema if pa.types.is_list(field.type) or pa.types.is_large_list(field.type)]
    lists += [field.name for field in table.schema if pa.types.is_fixed_size_list(field.type)]
    if not lists:
        return table.to_pandas()
    chosen = VECTOR if VECTOR in lists else lists[0]
    if len(lists) > 1 and chosen != VECTOR:
        raise DataError(f"columns {', '.join(lists)} hold lists: expected one of them, or one called {VECTOR!r}")
    frame = table.drop_columns(lists).to_pandas()
    vectors = table.column(chosen).to_pandas()
    lengths = {0 if vector is None else len(vector) for vector in vectors}
    if len(lengths) != 1:
        raise DataError(f"column {chosen!r}: expected vectors of one length, found {sorted(lengths)[:5]}")
    values = np.stack(list(vectors)) if len(vectors) else np.empty((0, 0))
    names = [f"{chosen}_{number}" for number in range(values.shape[1])]
    return pd.concat([frame, pd.DataFrame(values, columns=names)], axis=1)


def _values(frame: pd.DataFrame, path: Path) -> np.ndarray:
    """float32 [n, D]; refuses whatever is no feature."""
    for name in frame.columns:
        if name.lower() in FACTS:
            raise DataError(f"{path}: column {name!r} is a fact about the scan, not a feature; take it out of the file")
        if not name.strip() or name.startswith("Unnamed: "):
            raise DataError(f"{path}: a column without a name (an index?); name it, or take it out of the file")
        if not pd.api.types.is_numeric_dtype(frame[name].dtype) or frame[name].dtype == bool:
            bad = int(pd.to_numeric(frame[name], errors="coerce").isna().sum())
            raise DataError(f"{path}: column {name!r}: expected numbers, found {bad} of {len(frame)} cells of text")
    if not frame.shape[1]:
        raise DataError(f"{path}: no column of features beside the ids; expected one numeric column a feature")
    with np.errstate(over="ignore"):
        values = frame.to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32)
    broken = ~np.isfinite(values)
    if broken.any():
        columns = np.flatnonzero(broken.any(axis=0))
        first = columns[0]
        raise DataError(
            f"{path}: {len(columns)} of {values.shape[1]} columns hold NaN, infinity or empty cells, first "
            f"{frame.columns[first]!r} in {int(broken[:, first].sum())} of {len(values)} rows; "
            "leave out these rows (counted as scans without a vector) or these columns"
        )
    return values


def _joined(frame: pd.DataFrame, table: pd.DataFrame, path: Path) -> np.ndarray:
    """[rows of the table] the row of the file with its vector, -1 where there is none."""
    used = [name for name in KEY if name in frame and frame[name].notna().any() and table[name].notna().any()]
    if "participant_id" not in used:
        raise DataError(f"{path}: column 'participant_id' is empty")
    theirs, ours = _folded(frame[used]), _folded(table[used])
    twice = theirs[theirs.duplicated()]
    if len(twice):
        raise DataError(
            f"{path}: {twice.nunique()} scans have more than one row by {', '.join(used)}, first {twice.iloc[0]!r}; "
            "keep one row a scan"
        )
    rows = pd.Index(theirs).get_indexer(pd.Index(ours))
    rows = _without_zeros(rows, theirs, ours)
    found = rows[rows >= 0]
    several = ours[(rows >= 0) & ours.duplicated(keep=False)]
    if len(several):
        missing = [name for name in KEY if name not in used and table[name].nunique() > 1]
        raise DataError(
            f"{path}: {several.nunique()} ids stand for several scans each, first {several.iloc[0]!r}; "
            f"add a column {' and '.join(missing) or 'run'}"
        )
    lost = theirs[~np.isin(np.arange(len(theirs)), found)]
    if len(found) == 0:
        raise DataError(
            f"{path}: none of its {len(theirs)} rows joins with one of the cohort's {len(ours)} scans by "
            f"{', '.join(used)}: {theirs.iloc[0]!r} there, {ours.iloc[0]!r} here"
        )
    if len(lost):
        free = ours[rows < 0]
        here = f"; a scan here without a vector: {free.iloc[0]!r}" if len(free) else ""
        warn(f"{path}: {len(lost)} of {len(theirs)} rows are of no scan of the cohort, first {lost.iloc[0]!r}{here}")
    return rows


def _folded(ids: pd.DataFrame) -> pd.Series:
    """The ids of each row as one text, spelled alike: `Sub-007`, `ses-1.0` -> `007/1`."""
    words = []
    for name in ids.columns:
        text = as_text(ids[name]).fillna("").str.lower().str.replace(_PREFIX, "", regex=True)
        words.append(text.str.replace(r"^(\d+)\.0$", r"\1", regex=True))
    return words[0].str.cat(words[1:], sep="/") if len(words) > 1 else words[0]


def _without_zeros(rows: np.ndarray, theirs: pd.Series, ours: pd.Series) -> np.ndarray:
    """`rows` with pairs added whose ids are equal but for leading zeros, where no other id of either side is."""
    loose = [side.str.replace(_ZEROS, "", regex=True) for side in (theirs, ours)]
    alone = [
        (whole.groupby(short).transform("nunique") == 1).to_numpy()
        for whole, short in zip((theirs, ours), loose, strict=True)
    ]
    free = np.setdiff1d(np.flatnonzero(alone[0]), rows)
    if not len(free):
        return rows
    place = pd.Index(loose[0].iloc[free]).get_indexer(pd.Index(loose[1]))
    return np.where((rows < 0) & (place >= 0) & alone[1], free[place], rows)


def covered(features: Features, table: pd.DataFrame) -> np.ndarray:
    """bool [n]: the scans of `table` that have a vector."""
    return scan_keys(table).isin(scan_keys(features.keys)).to_numpy(dtype=bool)
