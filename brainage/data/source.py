"""What the library asks of whoever brings the scans: the seam between cohorts and everything after them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pandas as pd

from brainage.data.array_store import ArrayStore
from brainage.imaging.contract import InputContract


class ScanSource(Protocol):
    """Scans with their table, split and arrays; `data_modules.cohort.CohortDataModule` is the one shipped."""

    contract: InputContract
    split: pd.DataFrame  # cohort, participant_id, split
    split_hash: str
    split_source: str  # official | file | drawn; of a mixture "<member> <source>, ..."
    seed: int  # of the order of the training scans; set by the run

    def describe(self) -> dict[str, str]:
        """Lines of the plan, before any scan is read."""

    def planned(self) -> pd.DataFrame:
        """The scans that the store will hold, with their split, before any of them is read."""

    def prepare(self, on_progress: Callable[[int, int], None] | None = None) -> ArrayStore:
        """Build the store, finish it, or open it."""

    @property
    def store(self) -> ArrayStore: ...

    @property
    def table(self) -> pd.DataFrame:
        """Canonical table in the order of the store, with `split`."""

    @property
    def dropped(self) -> pd.DataFrame:
        """Scans left out, each with its reason."""

    def overlap(self) -> pd.DataFrame | None:
        """Pairs of people of several cohorts who are one person, as far as seen; None of a cohort on its own."""

    def rows(self, *splits: str) -> np.ndarray:
        """Rows of the store that belong to any of the splits."""

    def train_dataloader(self) -> Any: ...

    def val_dataloader(self) -> Any: ...

    def loader_wait_s(self) -> float: ...


def data_digest(data: ScanSource) -> str:
    """16 hex digits of what a network is trained on: every sample of the store, in order, and the ages."""
    ages = np.ascontiguousarray(data.table["age_years"].to_numpy(np.float64))
    return hashlib.blake2b(data.store.checksum.encode() + ages.tobytes(), digest_size=8).hexdigest()
