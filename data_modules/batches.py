"""Whole batches out of an array store, as loaders ask for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from brainage.data.array_store import ArrayStore
from brainage.data.masking import stored_shape, unmask
from brainage.data.table import person_keys, sample_numbers

Batch = dict[str, Any]
_BLOCK_BYTES = 2**28


class ScanBatches(Dataset):
    """Whole batches of a store: `dataset.__getitems__(positions)` returns one collated batch.

    `reuse` > 0 copies into a ring of that many buffers instead of new memory; the caller must be done with a batch
    before the ring comes round (Lightning holds two at most).
    """

    def __init__(self, source: ArrayStore | None, table: pd.DataFrame, rows: np.ndarray, *, reuse: int = 0) -> None:
        self.source = source  # a store travels to worker processes as its path; None: samples live on the device
        self.rows = rows
        self.age_years = table["age_years"].to_numpy(np.float32)
        self.subject = pd.factorize(person_keys(table))[0].astype(np.int64)
        self.site = pd.factorize(table["site"])[0].astype(np.int64)  # -1: unknown
        self.key = sample_numbers(table).astype(np.int64)
        self.reuse = reuse
        self._ring: list[torch.Tensor] = []
        self._turn = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: list[int]) -> Batch:
        index = self.rows[positions]
        batch: Batch = {
            "age_years": torch.from_numpy(self.age_years[index]),
            "subject": torch.from_numpy(self.subject[index]),
            "site": torch.from_numpy(self.site[index]),
            "key": torch.from_numpy(self.key[index]),
            "index": torch.from_numpy(index.astype(np.int64)),
        }
        if self.source is not None:
            batch["sample"] = self._copy(index)
        return batch

    def _copy(self, index: np.ndarray) -> torch.Tensor:
        assert self.source is not None
        contract = self.source.contract
        out = self._buffer((len(index), *stored_shape(contract)), contract.dtype)
        self.source.read_stored(index, out=out.numpy())
        return out

    def _buffer(self, shape: tuple[int, ...], dtype: np.dtype) -> torch.Tensor:
        if not self.reuse:
            return _room(shape, dtype)
        place, self._turn = self._turn, (self._turn + 1) % self.reuse
        if place == len(self._ring):
            self._ring.append(_room(shape, dtype))
        elif self._ring[place].shape != shape:
            self._ring[place] = _room(shape, dtype)
        return self._ring[place]


class DeviceSide:
    """What is done to a batch where it is used: samples that live there are picked, in-mask rows become volumes."""

    def __init__(self, store: ArrayStore) -> None:
        self.store = store
        self._rows: torch.Tensor | None = None  # of the whole store, with `resident: device`
        self._index: torch.Tensor | None = None  # of the voxels in the mask

    def __call__(self, batch: Batch) -> Batch:
        device = batch["index"].device
        if "sample" not in batch:
            if self._rows is None or self._rows.device != device:
                self._rows = rows_on(device, self.store)
            batch["sample"] = self._rows[batch["index"]]
        if self.store.mask is not None:
            if self._index is None or self._index.device != device:
                self._index = torch.from_numpy(self.store.mask.index).to(device)
            batch["sample"] = unmask(batch["sample"], self._index, self.store.contract.shape)
        return batch


def rows_on(device: torch.device, store: ArrayStore) -> torch.Tensor:
    """All rows of a store as stored; the host never holds more than a block of them beside the file cache."""
    kind = torch.float16 if store.contract.dtype == np.float16 else torch.float32
    rows = torch.empty((len(store), *stored_shape(store.contract)), dtype=kind, device=device)
    size = max(1, _BLOCK_BYTES // max(1, store.nbytes // len(store)))
    for start in range(0, len(store), size):
        places = range(start, min(start + size, len(store)))
        rows[start : places.stop] = torch.from_numpy(store.read_stored(places)).to(device)
    return rows


def _room(shape: tuple[int, ...], dtype: np.dtype) -> torch.Tensor:
    """Made by numpy, which asks the kernel for large pages: copied into a tenth faster than `torch.empty`."""
    return torch.from_numpy(np.empty(shape, dtype))


class TimedLoader(DataLoader):
    """A DataLoader that adds up how long its consumer waited."""

    waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited_s += time.perf_counter() - start
            yield batch
