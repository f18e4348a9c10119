"""A table of regional values as samples: one row a scan, known by an id and perhaps a session (modality roi)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.config import nearest
from brainage.errors import ConfigError, DataError
from data_modules.bids_options import Options
from data_modules.bids_people import SPELLINGS
from data_modules.sheets import columns, numbers, plain, read_sheet


class Regions:
    """The table that `data.options.table_file` names. Opens nothing before it is asked."""

    def __init__(self, root: Path, options: Options) -> None:
        if not options.table_file:
            raise ConfigError("data.options.table_file: name the table of regional values for modality roi")
        self.file, self.options = root / options.table_file, options
        self.name = Path(options.table_file).as_posix()
        if Path(options.table_file).is_absolute() or ".." in Path(options.table_file).parts:
            raise ConfigError(f"data.options.table_file={self.name}: expected a file inside data.root")

    def rows(self) -> pd.DataFrame:
        """participant_id, session_id, run, path (`file#row`) and reason (a value is missing; NA: usable)."""
        ids, names, values = self._table()
        rows = ids.assign(path=[f"{self.name}#{row}" for row in range(len(ids))])
        missing = ~np.isfinite(values)
        first = [names[int(place)] for place in missing.argmax(axis=1)]
        reasons = pd.Series([f"value of {name} is missing or no number" for name in first], dtype="string")
        return rows.assign(reason=reasons.where(missing.any(axis=1)))

    def features(self) -> tuple[str, ...]:
        """Names of the values, in the order of the table."""
        return self._table()[1]

    def sample(self, path: str) -> np.ndarray:
        """float32 (F,) of a row; DataError when it is not there or a value is missing."""
        row = path.rpartition("#")[2]
        _, names, values = self._table()
        if not row.isdecimal() or int(row) >= len(values):
            raise DataError(f"{self.file}: expected a row below {len(values)}, found {row!r}")
        sample = values[int(row)]
        if not np.isfinite(sample).all():
            region = names[int(np.flatnonzero(~np.isfinite(sample))[0])]
            raise DataError(f"{self.file}: row {int(row) + 1}: value of {region} is missing or no number")
        return sample.copy()

    def _table(self) -> tuple[pd.DataFrame, tuple[str, ...], np.ndarray]:
        if not self.file.is_file():
            raise DataError(f"{self.file}: file not found (data.options.table_file)")
        said = self.options
        return _read(
            str(self.file), self.file.stat().st_mtime_ns, said.table_id, said.table_session, tuple(said.features)
        )


@lru_cache(maxsize=2)
def _read(
    file: str, modified_ns: int, table_id: str, table_session: str, features: tuple[str, ...]
) -> tuple[pd.DataFrame, tuple[str, ...], np.ndarray]:
    path = Path(file)
    sheet = read_sheet(path)
    known = columns(sheet, {key: SPELLINGS[key] for key in ("participant_id", "session_id")}, path)
    person = _given(table_id, sheet, path) or known.get("participant_id", str(sheet.columns[0]))
    session = _given(table_session, sheet, path) or known.get("session_id", "")
    names = _feature_names(sheet.drop(columns=[person, *([session] if session else [])]), features, path)
    values = np.stack([_numbers(sheet[name]) for name in names], axis=1).astype(np.float32)
    parts = [_ids(str(text)) for text in sheet[person].fillna("")]
    ids = pd.DataFrame(parts, columns=["participant_id", "session_id", "run"], dtype="string")
    if session:
        ids["session_id"] = sheet[session].str.replace(r"^ses-", "", regex=True).fillna("")
    return ids, names, values


def _given(name: str, sheet: pd.DataFrame, file: Path) -> str:
    if name and name not in sheet:
        raise DataError(f"{file}: column {name!r} missing{nearest(name, list(sheet.columns))}")
    return name


def _feature_names(sheet: pd.DataFrame, features: Sequence[str], file: Path) -> tuple[str, ...]:
    """Columns in the order of the table: those that are named or match, or all that hold numbers and are no fact."""
    present = [str(name) for name in sheet.columns]
    if not features:
        facts = {plain(spelling) for spellings in SPELLINGS.values() for spelling in spellings}
        chosen = [name for name in present if plain(name) not in facts and _is_numeric(sheet[name])]
    else:
        for feature in features:
            if feature not in present and not any(_matches(feature, name) for name in present):
                raise DataError(f"{file}: data.options.features: no column is or matches {feature!r}")
        chosen = [name for name in present if any(name == f or _matches(f, name) for f in features)]
    if not chosen:
        raise DataError(f"{file}: expected columns of numbers, found {', '.join(present[:5])}")
    return tuple(chosen)


def _is_numeric(column: pd.Series) -> bool:
    there = column.dropna()
    return len(there) > 0 and bool(np.isfinite(_numbers(there)).all())


def _numbers(column: pd.Series) -> np.ndarray:
    """float64, NaN where there is none; only a column that is not plain pays for decimal commas."""
    try:
        return column.to_numpy(dtype="float64", na_value=np.nan)
    except ValueError:
        return numbers(column).to_numpy()


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ConfigError(f"data.options.features: {pattern!r} is no regular expression ({error})") from error


def _ids(text: str) -> tuple[str, str, str]:
    """Person, session and run: sub-01_ses-2_run-1_T1w in parts, another id as it is.

    >>> _ids("sub-01_ses-2_T1w"), _ids("IXI012-HH-1211")
    (('01', '2', ''), ('IXI012-HH-1211', '', ''))
    """
    said = dict(re.findall(r"(?:^|_)(sub|ses|run)-([^_]+)", text)) if text.startswith("sub-") else {"sub": text}
    return said.get("sub", ""), said.get("ses", ""), said.get("run", "")
