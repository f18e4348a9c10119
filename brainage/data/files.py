"""Frames on disk: parquet between stages, TSV for people; written whole or not at all.

Missing text is the empty string in files and NA in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainage.errors import DataError
from brainage.runtime.files import write_atomically


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a frame as parquet, whole or not at all; missing text becomes the empty string, the index is left out."""
    frame = table.reset_index(drop=True)
    for name in frame.columns:
        if _is_text(frame[name]):
            frame[name] = frame[name].astype("string").fillna("")
    write_atomically(path, lambda temporary: frame.to_parquet(temporary, index=False))


def read_table(path: str | Path) -> pd.DataFrame:
    """Inverse of `write_table`; DataError naming the file when it is absent or torn."""
    frame = _read(path, pd.read_parquet)
    for name in frame.columns:
        if _is_text(frame[name]):
            frame[name] = frame[name].astype("string").mask(frame[name] == "", pd.NA)
    return frame


def write_tsv(frame: pd.DataFrame, path: str | Path) -> None:
    """Write tab-separated UTF-8 text, whole or not at all; missing values are empty."""
    write_atomically(
        path,
        lambda temporary: frame.to_csv(temporary, sep="\t", index=False, na_rep="", lineterminator="\n"),
    )


def read_tsv(path: str | Path) -> pd.DataFrame:
    """Every column as `string`, empty cells as NA (the word NA stays text); DataError naming the file."""
    frame = _read(path, lambda p: pd.read_csv(p, sep="\t", dtype=str, keep_default_na=False))
    return pd.DataFrame({name: as_text(frame[name]) for name in frame.columns})


def _read(path: str | Path, reader: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
    if not Path(path).is_file():
        raise DataError(f"{path}: file not found")
    try:
        return reader(Path(path))
    except Exception as error:
        raise DataError(f"{path}: not readable as a table ({' '.join(str(error).split())[:200]})") from error


def as_text(column: pd.Series) -> pd.Series:
    """`string`, stripped; empty is NA, and a whole float (an id column with gaps, read as numbers) loses its `.0`."""
    return pd.Series([_cell(value) for value in column.astype(object)], index=column.index, dtype="string")


def _cell(value: Any) -> Any:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return pd.NA
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip() or pd.NA


def _is_text(column: pd.Series) -> bool:
    """False for columns of lists (embeddings), which are object columns too."""
    return bool(pd.api.types.is_string_dtype(column.dropna()))
