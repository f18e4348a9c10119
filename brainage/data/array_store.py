"""An array store, opened: samples in one memory-mapped file, their table in the same order, and their contract."""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainage.data.filling import Layout, digest_of
from brainage.data.masking import Mask, MaskedRows, stored_shape
from brainage.data.table import finish_dropped, read_table, read_tsv, scan_keys
from brainage.errors import BrainageError, StoreError
from brainage.imaging.contract import InputContract

SCHEMA = 1
ARRAYS, TABLE, DROPPED, CONTRACT, MASK = "arrays.npy", "table.parquet", "dropped.tsv", "contract.json", "mask.npy"
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, which Python's mmap does not name yet


class ArrayStore:
    """An opened store; cheap to pickle, since every process maps the file anew and all share its pages.

    `table`, `arrays` and `read` have one order. `table` has the canonical columns, `digest` (of each row's bytes) and,
    with a mask, `outside_mask` (share of each scan's intensity that the mask took away). Samples are `contract.shape`
    whatever is stored: see `stored`.
    """

    def __init__(self, path: Path, table: pd.DataFrame, dropped: pd.DataFrame, record: dict[str, Any]) -> None:
        self.path = path.absolute()
        self.table = table
        self.dropped = dropped
        self.record = record  # contract.json
        self.contract = InputContract.from_dict(record["contract"])
        self._arrays: np.memmap | None = None
        self._mask: Mask | None = None

    @classmethod
    def open(cls, path: str | Path) -> ArrayStore:
        """Open a store; StoreError naming the file that is absent, torn, or does not belong to the others."""
        path = Path(path)
        for name in (CONTRACT, TABLE, DROPPED, ARRAYS):
            _refuse_absent(path, name)
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
        if store.contract.mask:
            _refuse_absent(path, MASK)
            _ = store.mask
        return store

    @property
    def stored(self) -> np.memmap:
        """Read-only memory map of `arrays.npy`: [n, *sample shape], or [n, K] of the K voxels in the mask."""
        if self._arrays is None:
            layout = self._layout()
            shape = (layout.n, *layout.shape)
            self._arrays = np.memmap(layout.path, dtype=layout.dtype, mode="r", offset=layout.offset(0), shape=shape)
        return self._arrays

    @property
    def arrays(self) -> Any:
        """Samples [n, *sample shape], read-only: the memory map, or a `MaskedRows` over it."""
        return self.stored if self.mask is None else MaskedRows(self.stored, self.mask)

    @property
    def mask(self) -> Mask | None:
        """What the rows were stored inside of; None: whole samples."""
        if self._mask is None and self.contract.mask:
            self._mask = _read_mask(self.path, self.contract)
        return self._mask

    @property
    def shard(self) -> tuple[int, int] | None:
        """(i, n) of a part that one job of an array prepared; None of a whole store."""
        return tuple(self.record["shard"]) if "shard" in self.record else None

    def __len__(self) -> int:
        return len(self.table)

    @property
    def checksum(self) -> str:
        """Of every sample and its key, in order."""
        return self.record["checksum"]

    @property
    def nbytes(self) -> int:
        """Bytes of all samples as stored."""
        return len(self) * self._layout().row_bytes

    def read(self, indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Samples [len(indices), *sample shape] in the stored type, 0 outside a mask, copied into `out` if given.

        Row by row, because that is what a memory map does best: fancy indexing takes twice as long. Raises ValueError
        when `out` has another shape or type.
        """
        if self.mask is None:
            return self.read_stored(indices, out)
        out = self._room(len(indices), self.contract.shape, out)
        for place, index in enumerate(indices):
            self.mask.restore(self.read_stored([index]), out[place : place + 1])
        return out

    def read_stored(self, indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """As `read`, but rows as they lie on the disk: [len(indices), K] with a mask, for `unmask` on the device."""
        out = self._room(len(indices), stored_shape(self.contract), out)
        rows = np.asarray(self.stored)  # indexing a memmap object builds a Python object a row
        for place, index in enumerate(indices):
            out[place] = rows[index]
        return out

    def preload(self) -> None:
        """Bring the whole file into memory now, once for all processes of this node.

        Nothing is copied: the pages are the kernel's file cache, which every process that maps the file shares, so that
        eight ranks hold one cohort and not eight. They stay as long as memory lasts.
        """
        pages = self.stored._mmap  # type: ignore[attr-defined]
        pages.madvise(mmap.MADV_WILLNEED)  # reads ahead while the pages are touched
        try:
            pages.madvise(_POPULATE_READ)
        except OSError:  # an older kernel: touch one byte a page
            np.frombuffer(pages, np.uint8)[:: mmap.PAGESIZE].max(initial=0)

    def verify(self) -> list[str]:
        """Keys of the scans whose bytes are not the ones that were stored; reads the whole file."""
        rows = np.asarray(self.stored)
        return [
            key
            for row, key, digest in zip(rows, scan_keys(self.table), self.table["digest"], strict=True)
            if digest_of(row.reshape(-1).view(np.uint8).data) != digest
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": None, "_mask": None}

    def _layout(self) -> Layout:
        return layout_of(self.path, len(self.table), self.contract)

    def _room(self, n: int, sample: tuple[int, ...], out: np.ndarray | None) -> np.ndarray:
        shape = (n, *sample)
        if out is None:
            return np.empty(shape, self.contract.dtype)
        if out.shape != shape or out.dtype != self.contract.dtype:
            raise ValueError(f"out: expected {self.contract.dtype} {shape}, found {out.dtype} {out.shape}")
        return out

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
    """Bytes of `arrays.npy` for n samples; of the voxels inside, where the contract has a mask."""
    return layout_of(Path(), n, contract).nbytes


def checksum_of(table: pd.DataFrame) -> str:
    """32 hex digits over the keys and digests of a store's table, in order."""
    return digest_of(json.dumps([scan_keys(table).tolist(), table["digest"].tolist()]).encode())


def layout_of(folder: Path, n: int, contract: InputContract, mask: Mask | None = None) -> Layout:
    """Where n samples of a contract lie in the store of a folder; `mask` is needed to fill it."""
    return Layout(folder / ARRAYS, n, stored_shape(contract), contract.dtype, mask)


def _read_mask(folder: Path, contract: InputContract) -> Mask:
    try:
        inside = np.load(folder / MASK)
        mask = Mask(contract.mask["name"], contract.mask["threshold"], inside)
        fits = inside.dtype == bool and mask.shape == tuple(contract.shape) and mask.digest == contract.mask["digest"]
    except (ValueError, OSError, EOFError) as error:
        raise StoreError(f"store {folder}: {MASK} is torn ({error}); delete the folder and prepare it again") from error
    if not fits:
        raise StoreError(f"store {folder}: {MASK} does not fit {CONTRACT}; delete the folder and prepare it again")
    return mask


def _refuse_absent(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise StoreError(f"store {folder}: {name} not found; prepare it, or name another folder with data.store=DIR")
