"""Several array stores seen as one, without a byte copied: each is prepared once and reused by any mixture.

A view is made in memory and never kept: what is on disk are the stores it is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainage.data.array_store import ArrayStore, checksum_of
from brainage.data.masking import Mask, stored_shape
from brainage.data.table import finish_dropped, scan_keys
from brainage.errors import ContractError, DataError


class JoinedStore(ArrayStore):
    """Some rows of several stores, as one store; read-only, and as cheap to pickle as they are.

    stores: what is joined. tables: for each store its canonical table with `digest`, row i being sample i of the store,
    possibly with other keys (a mixture names its cohorts) or other extra columns. keep: for each store a bool a row, or
    None for all. dropped: the scans left out anywhere, each with its reason. path: the folder that stands for the view
    in messages.

    Raises ContractError when the samples differ in kind, DataError when a table does not fit its store or two rows have
    one key.
    """

    def __init__(
        self,
        stores: Sequence[ArrayStore],
        tables: Sequence[pd.DataFrame],
        *,
        path: Path,
        dropped: pd.DataFrame,
        keep: Sequence[np.ndarray] | None = None,
    ) -> None:
        if not stores:
            raise DataError(f"{path}: no store to join; expected at least one")
        self.stores = tuple(stores)
        kept = [np.ones(len(store), bool) for store in stores] if keep is None else list(keep)
        for store, table, rows in zip(stores, tables, kept, strict=True):
            stores[0].contract.refuse_other(store.contract, f"{store.path} joined with {stores[0].path}")
            if len(table) != len(store) or len(rows) != len(store):
                raise DataError(
                    f"{store.path}: expected a row for each of its {len(store)} samples, found {len(table)}"
                )
        self._member = np.repeat(np.arange(len(stores)), [int(rows.sum()) for rows in kept])
        self._local = np.concatenate([np.flatnonzero(rows) for rows in kept])
        parts = [table[rows] for table, rows in zip(tables, kept, strict=True)]
        table = join_tables(parts)
        keys = scan_keys(table)
        if keys.duplicated().any():
            raise DataError(f"{path}: scan {keys[keys.duplicated()].iloc[0]} is in two of the joined stores")
        record = {
            **stores[0].record,
            "scans": len(table),
            "damaged": {key: reason for store in stores for key, reason in store.record.get("damaged", {}).items()},
            "checksum": checksum_of(table),
        }
        super().__init__(Path(path), table, finish_dropped(dropped), record)

    @property
    def stored(self) -> Any:
        """Rows as they lie on the disk, read-only: see `JoinedRows`."""
        return JoinedRows([store.stored for store in self.stores], self._member, self._local)

    @property
    def arrays(self) -> Any:
        """Samples [n, *sample shape], read-only: see `JoinedRows`."""
        return JoinedRows([store.arrays for store in self.stores], self._member, self._local)

    @property
    def mask(self) -> Mask | None:
        return self.stores[0].mask  # of one contract, so all have this one

    @property
    def nbytes(self) -> int:
        """Bytes of the samples in view, wherever they lie."""
        seen = np.bincount(self._member, minlength=len(self.stores))
        return sum(int(n) * (store.nbytes // max(len(store), 1)) for n, store in zip(seen, self.stores, strict=True))

    def read(self, indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        out = self._room(len(indices), self.contract.shape, out)
        for place, index in enumerate(indices):
            self.stores[self._member[index]].read([self._local[index]], out[place : place + 1])
        return out

    def read_stored(self, indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        out = self._room(len(indices), stored_shape(self.contract), out)
        for place, index in enumerate(indices):
            self.stores[self._member[index]].read_stored([self._local[index]], out[place : place + 1])
        return out

    def preload(self) -> None:
        for store in self.stores:
            store.preload()

    def verify(self) -> list[str]:
        """Keys, as the joined stores have them, of scans whose bytes are not the ones that were stored."""
        return [key for store in self.stores for key in store.verify()]


class JoinedRows:
    """Rows of several arrays [*, *sample shape] as one read-only array, as far as the library looks at samples:
    `len`, `shape`, a row, rows by slice or index, `reshape(n, -1)` with blocks of columns, iteration, `numpy.asarray`.

    >>> rows = JoinedRows([np.eye(2), np.ones((3, 2))], member=np.array([1, 0]), local=np.array([2, 1]))
    >>> rows.shape, rows[1].tolist(), rows.reshape(2, -1)[:, :1].tolist()
    ((2, 2), [0.0, 1.0], [[1.0], [0.0]])
    """

    def __init__(self, maps: Sequence[np.ndarray], member: np.ndarray, local: np.ndarray) -> None:
        self.maps = [np.asarray(one) if isinstance(one, np.memmap) else one for one in maps]
        self.member = member
        self.local = local
        self.shape = (len(member), *self.maps[0].shape[1:])
        self.dtype = self.maps[0].dtype

    def __len__(self) -> int:
        return len(self.member)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, index: Any) -> np.ndarray:
        rows, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        if isinstance(rows, int | np.integer):
            return self.maps[self.member[rows]][(int(self.local[rows]), *rest)]
        member, local = self.member[rows], self.local[rows]
        parts = [self.maps[m][(int(place), *rest)] for m, place in zip(member, local, strict=True)]
        return np.stack(parts) if parts else np.empty((0, *self.shape[1:]), self.dtype)[(np.s_[:], *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows of several files are no array: expected leave to copy them")
        whole = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for place, row in enumerate(self):
            whole[place] = row
        return whole

    def reshape(self, *shape: int) -> JoinedRows:
        """A view [n, *shape]; the first length must stay n."""
        if shape[0] != len(self):
            raise ContractError(f"rows of several files: expected to keep {len(self)} rows, found a shape of {shape}")
        return JoinedRows([one.reshape(len(one), *shape[1:]) for one in self.maps], self.member, self.local)


def join_tables(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table below the other; a column that only some have is missing (NA, NaN) in the others.

    An extra column that is a number in one and text in another becomes text.
    """
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    columns = {}
    for name in names:
        dtypes = {str(table[name].dtype) for table in tables if name in table}
        dtype = dtypes.pop() if len(dtypes) == 1 else "string"
        parts = [_column(table, name, dtype) for table in tables]
        columns[name] = pd.concat(parts, ignore_index=True)
    return pd.DataFrame(columns)


def _column(table: pd.DataFrame, name: str, dtype: str) -> pd.Series:
    if name not in table:
        return pd.Series(np.nan if dtype == "float64" else pd.NA, index=table.index, dtype=dtype)
    column = table[name]
    if dtype == "string" and str(column.dtype) == "float64":
        written = column.map(lambda number: f"{number:g}" if pd.notna(number) else pd.NA)
        return written.astype("string")
    return column.astype(dtype)
