"""An array store, opened: samples in one memory-mapped file, their table in the same order, and their contract."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainage.data.filling import Layout, digest_of
from brainage.data.table import finish_dropped, read_table, read_tsv, scan_keys
from brainage.errors import BrainageError, StoreError
from brainage.imaging.contract import InputContract

SCHEMA = 1
ARRAYS, TABLE, DROPPED, CONTRACT = "arrays.npy", "table.parquet", "dropped.tsv", "contract.json"


class ArrayStore:
    """An opened store; cheap to pickle, since every process maps the file anew.

    `table` (canonical columns and `digest`) and `arrays` (read-only memory map, [n, *sample shape]) have one order.
    """

    def __init__(self, path: Path, table: pd.DataFrame, dropped: pd.DataFrame, record: dict[str, Any]) -> None:
        self.path = path.absolute()
        self.table = table
        self.dropped = dropped
        self.record = record  # contract.json
        self.contract = InputContract.from_dict(record["contract"])
        self._arrays: np.memmap | None = None

    @classmethod
    def open(cls, path: str | Path) -> ArrayStore:
        """Open a store; StoreError naming the file that is absent, torn, or does not belong to the others."""
        path = Path(path)
        for name in (CONTRACT, TABLE, DROPPED, ARRAYS):
            if not (path / name).is_file():
                raise StoreError(
                    f"store {path}: {name} not found; prepare it, or name another folder with data.store=DIR"
                )
        try:
            record = json.loads((path / CONTRACT).read_text(encoding="utf-8"))
            if record["schema"] != SCHEMA:
                raise StoreError(f"schema {record['schema']}, expected {SCHEMA}: prepared by another brainage")
            store = cls(path, read_table(path / TABLE), finish_dropped(read_tsv(path / DROPPED)), record)
            table_fits = record["checksum"] == checksum_of(store.table)
            dropped_fits = set(record["damaged"]) <= set(scan_keys(store.dropped))
        except (BrainageError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"store {path}: not readable ({error}); delete the folder and prepare it again") from error
        if not (table_fits and dropped_fits):
            name = DROPPED if table_fits else TABLE
            raise StoreError(f"store {path}: {name} does not fit {CONTRACT}; delete the folder and prepare it again")
        store._refuse_torn_arrays()
        return store

    @property
    def arrays(self) -> np.memmap:
        if self._arrays is None:
            layout = self._layout()
            shape = (layout.n, *layout.shape)
            self._arrays = np.memmap(layout.path, dtype=layout.dtype, mode="r", offset=layout.offset(0), shape=shape)
        return self._arrays

    def __len__(self) -> int:
        return len(self.table)

    @property
    def checksum(self) -> str:
        """Of every sample and its key, in order."""
        return self.record["checksum"]

    @property
    def nbytes(self) -> int:
        """Bytes of all samples."""
        return len(self) * self._layout().row_bytes

    def read(self, indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Samples [len(indices), *sample shape] in the stored type, copied into `out` if given.

        Row by row, because that is what a memory map does best: fancy indexing takes twice as long. Raises ValueError
        when `out` has another shape or type.
        """
        shape = (len(indices), *self.contract.shape)
        if out is None:
            out = np.empty(shape, self.contract.dtype)
        elif out.shape != shape or out.dtype != self.contract.dtype:
            raise ValueError(f"out: expected {self.contract.dtype} {shape}, found {out.dtype} {out.shape}")
        rows = np.asarray(self.arrays)  # indexing a memmap object builds a Python object a row
        for place, index in enumerate(indices):
            out[place] = rows[index]
        return out

    def verify(self) -> list[str]:
        """Keys of the scans whose bytes are not the ones that were stored; reads the whole file."""
        rows = np.asarray(self.arrays)
        return [
            key
            for row, key, digest in zip(rows, scan_keys(self.table), self.table["digest"], strict=True)
            if digest_of(row.reshape(-1).view(np.uint8).data) != digest
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None}

    def _layout(self) -> Layout:
        return layout_of(self.path, len(self.table), self.contract)

    def _refuse_torn_arrays(self) -> None:
        layout = self._layout()
        found = layout.path.stat().st_size
        with open(layout.path, "rb") as file:
            header = file.read(len(layout.header))
        if found != layout.nbytes:
            what = f"expected {layout.nbytes} bytes for {layout.n} samples, found {found}"
        elif header != layout.header:
            what = f"its header is not the one of {layout.n} samples of {layout.shape} {layout.dtype}"
        else:
            return
        raise StoreError(f"store {self.path}: {ARRAYS}: {what}; delete the folder and prepare it again")


def estimate_bytes(n: int, contract: InputContract) -> int:
    """Bytes of `arrays.npy` for n samples."""
    return layout_of(Path(), n, contract).nbytes


def checksum_of(table: pd.DataFrame) -> str:
    """32 hex digits over the keys and digests of a store's table, in order."""
    return digest_of(json.dumps([scan_keys(table).tolist(), table["digest"].tolist()]).encode())


def layout_of(folder: Path, n: int, contract: InputContract) -> Layout:
    """Where n samples of a contract lie in the store of a folder."""
    return Layout(folder / ARRAYS, n, tuple(contract.shape), contract.dtype)
