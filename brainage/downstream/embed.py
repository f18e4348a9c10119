"""Frozen representations: one row a scan, found again by its key.

Legend: n scans, F trunk features, D outputs of the head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from brainage.data.source import ScanSource
from brainage.data.table import KEY, scan_keys
from brainage.downstream.features import Embeddings
from brainage.errors import DataError
from brainage.pretraining.gather import ranks
from brainage.pretraining.module import PretrainingModule


class _Part(NamedTuple):
    """What one rank computed: `keys` [m] text, `trunk` [m, F] and `head` [m, D] float32; None of no scan."""

    keys: np.ndarray
    trunk: np.ndarray
    head: np.ndarray


def embed(
    module: PretrainingModule, data: ScanSource, rows: np.ndarray, *, device: str = "cpu", batch_size: int = 16
) -> Embeddings:
    """Keys, trunk features and head outputs of the given rows of a store, each scan once, in their order.

    No augmentation; BatchNorm uses its running statistics. For a supervised module the head is the age in years.
    Processes that have met (`pretraining.group.join`) share the work, must all call this, and all get everything. They
    are dealt whole batches, so that on a CPU each number is to the bit what one process computes on as many threads.

    Raises ContractError, before anything is computed, when the scans are not what the encoder was trained on, and
    DataError when there are no rows or another process holds other scans.
    """
    module.contract.refuse_other(data.contract, f"{module.experiment.name} (trained encoder)")
    table = data.table.iloc[rows].assign(row=rows)
    table = table[~scan_keys(table).duplicated()]
    if table.empty:
        raise DataError(f"{module.experiment.name} (trained encoder): no scans to embed; expected at least one row")
    names = scan_keys(table).to_numpy(dtype=str)
    own = _own_part(module.eval().to(device), data.store.arrays, table["row"].to_numpy(), names, device, batch_size)
    found = _gathered(own)
    place = pd.Index(found.keys).get_indexer(pd.Index(names))
    if (place < 0).any() or len(found.keys) != len(names):
        raise DataError(
            f"{module.experiment.name} (trained encoder): the processes hold other scans ({len(found.keys)} embedded, "
            f"{int((place < 0).sum())} of this one's {len(names)} not among them); give all of them one store"
        )
    return Embeddings(table[KEY].reset_index(drop=True), found.trunk[place], found.head[place])


def _own_part(
    module: PretrainingModule, samples: Any, rows: np.ndarray, names: np.ndarray, device: str, batch_size: int
) -> _Part | None:
    """Every W-th batch, where there are W ranks; none where there are fewer batches than ranks."""
    first = dist.get_rank() if ranks() > 1 else 0
    parts = []
    with torch.inference_mode():
        for start in range(first * batch_size, len(rows), ranks() * batch_size):
            here = slice(start, start + batch_size)
            batch = np.stack([samples[row] for row in rows[here]])
            trunk, head = module.embed(torch.from_numpy(batch).to(device))
            parts.append(_Part(names[here], trunk.cpu().numpy(), head.cpu().numpy()))
    return _joined(parts) if parts else None


def _gathered(own: _Part | None) -> _Part:
    """The parts of all ranks, each key once."""
    parts: list[_Part | None] = [own]
    if ranks() > 1:
        parts = [None] * ranks()
        dist.all_gather_object(parts, own)
    whole = _joined([part for part in parts if part is not None])
    once = ~pd.Index(whole.keys).duplicated()
    return whole if once.all() else _Part(*(values[once] for values in whole))


def _joined(parts: list[_Part]) -> _Part:
    return _Part(*(np.concatenate(values) for values in zip(*parts, strict=True)))
