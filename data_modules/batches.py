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
from brainage.data.table import person_keys, sample_numbers

Batch = dict[str, Any]


class ScanBatches(Dataset):
    """Whole batches of a store: `dataset.__getitems__(positions)` returns one collated batch.

    `reuse` > 0 copies into a ring of that many buffers instead of new memory; the caller must be done with a batch
    before the ring comes round (Lightning holds two at most).
    """

    def __init__(
        self, source: ArrayStore | np.ndarray | None, table: pd.DataFrame, rows: np.ndarray, *, reuse: int = 0
    ) -> None:
        self.source = source  # a store travels to worker processes as its path; None: samples live on the device
        self.rows = rows
        self.age_years = table["age_years"].to_numpy(np.float32)
        self.subject = pd.factorize(person_keys(table))[0].astype(np.int64)
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
            "key": torch.from_numpy(self.key[index]),
            "index": torch.from_numpy(index.astype(np.int64)),
        }
        if self.source is not None:
            batch["sample"] = self._copy(index)
        return batch

    def _copy(self, index: np.ndarray) -> torch.Tensor:
        if isinstance(self.source, ArrayStore):
            out = self._buffer((len(index), *self.source.contract.shape), self.source.contract.dtype)
            self.source.read(index, out=out.numpy())
            return out
        assert self.source is not None
        out = self._buffer((len(index), *self.source.shape[1:]), self.source.dtype)
        rows = out.numpy()
        for place, row in enumerate(index):
            rows[place] = self.source[row]
        return out

    def _buffer(self, shape: tuple[int, ...], dtype: np.dtype) -> torch.Tensor:
        kind = torch.float16 if dtype == np.float16 else torch.float32
        if not self.reuse:
            return torch.empty(shape, dtype=kind)
        place, self._turn = self._turn, (self._turn + 1) % self.reuse
        if place == len(self._ring):
            self._ring.append(torch.empty(shape, dtype=kind))
        elif self._ring[place].shape != shape:
            self._ring[place] = torch.empty(shape, dtype=kind)
        return self._ring[place]


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
