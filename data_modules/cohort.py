"""Table + split + array store -> loaders: the one road that every cohort takes to the training process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from brainage.config import DataConfig, nearest
from brainage.data.array_store import ArrayStore
from brainage.data.sampling import StepBatches
from brainage.data.splits import apply_split, carve_val, draw_split, read_split, refuse_leakage, split_hash
from brainage.data.store import estimate_bytes, prepare_store
from brainage.data.table import SPLITS, CohortTable, person_keys, sample_numbers
from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract
from data_modules import COHORTS
from data_modules.reader import CohortReader

Batch = dict[str, Any]


def open_reader(config: DataConfig) -> CohortReader:
    """The reader of the configured cohort; ConfigError on an unknown cohort or modality, DataError on the root."""
    if config.cohort not in COHORTS:
        raise ConfigError(f"data.cohort={config.cohort}: unknown{nearest(config.cohort, list(COHORTS))}")
    return COHORTS[config.cohort](config.root, config.modality, config.spacing_mm)


class CohortDataModule(L.LightningDataModule):
    """One cohort, read once into a store and served in whole batches.

    A batch is a dictionary: `sample` [B, *contract.shape] in the stored type (absent when `resident: device`, where
    `index` picks rows on the device), `age_years` [B] float32, `subject` [B] int64 (equal for the scans of one person),
    `key` [B] int64 (a stable number of the scan, the seed of its views), `index` [B] int64 (row of the store).
    """

    def __init__(
        self, config: DataConfig, *, reader: CohortReader | None = None, seed: int = 0, overfit_batches: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.overfit_batches = overfit_batches
        self.reader = reader or open_reader(config)
        self.contract: InputContract = self.reader.contract()
        self.listed: CohortTable = self.reader.table()
        self.split = self._split()
        self.split_hash = split_hash(self.split)
        self._store: ArrayStore | None = None
        self._table: pd.DataFrame | None = None
        self._in_memory: np.ndarray | None = None
        self._on_device: torch.Tensor | None = None
        self._loader: TimedLoader | None = None

    @property
    def store_path(self) -> Path:
        """`data.store`, or a folder named after the cohort, the modality and where the cohort lies."""
        if self.config.store != "auto":
            return Path(self.config.store)
        identity = f"{self.reader.root.resolve()}|{self.config.spacing_mm}|{self.config.limit}"
        if self.config.limit:  # which scans are the first n depends on the split
            identity += f"|{self.split_hash}"
        digest = hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()
        return Path("stores") / f"{self.config.cohort}_{self.config.modality}_{digest}"

    def planned(self) -> pd.DataFrame:
        """The scans that a store will hold, with their split, before any of them is read."""
        table = apply_split(self.listed.table, self.split)
        if self.config.limit:
            table = table.groupby("split", sort=False).head(self.config.limit).reset_index(drop=True)
        return table

    def bytes_needed(self) -> int:
        """Disk the store takes."""
        return estimate_bytes(len(self.planned()), self.contract)

    def describe(self) -> dict[str, str]:
        """Lines of the plan: scans, people and sites of each split, what was dropped, and the store."""
        table = self.planned()
        lines = {"cohort": f"{self.config.cohort} {self.config.modality} at {self.reader.root}"}
        for split in SPLITS:
            part = table[table["split"] == split]
            if len(part):
                ages = part["age_years"]
                people, sites = person_keys(part).nunique(), part["site"].nunique()
                lines[split] = (
                    f"{len(part)} scans of {people} people at {sites} site{'s' * (sites != 1)}, "
                    f"ages {ages.min():.1f}-{ages.max():.1f}"
                )
        if len(self.listed.dropped):
            reasons = self.listed.dropped["reason"].value_counts()
            shown = "; ".join(f"{reason} ({count})" for reason, count in reasons.head(3).items())
            lines["dropped"] = f"{len(self.listed.dropped)}: {shown}" + ("; ..." if len(reasons) > 3 else "")
        lines["sample"] = f"{tuple(self.contract.shape)} {self.contract.dtype}, {self.contract.modality}"
        state = "prepared" if self.store_path.is_dir() else "to be prepared"
        lines["store"] = f"{self.store_path} ({self.bytes_needed() / 2**30:.2f} GiB, {state})"
        return lines

    def prepare(self, on_progress: Callable[[int, int], None] | None = None) -> ArrayStore:
        """Build the store, or finish building it, or open it when it is already there."""
        self._store = prepare_store(
            # A split belongs to an experiment, the store to all of them.
            self.planned().assign(split=pd.array([pd.NA] * len(self.planned()), dtype="string")),
            self.contract,
            self.reader.read,
            self.store_path,
            workers=self.config.prepare_workers,
            dropped=self.listed.dropped,
            on_progress=on_progress,
        )
        return self._store

    @property
    def store(self) -> ArrayStore:
        """The store, prepared on first use."""
        return self._store if self._store is not None else self.prepare()

    @property
    def table(self) -> pd.DataFrame:
        """Canonical table in the order of the store, with this experiment's split."""
        if self._table is None:
            self._table = apply_split(self.store.table, self.split)
            refuse_leakage(self._table)
        return self._table

    @property
    def dropped(self) -> pd.DataFrame:
        """Rows of the cohort that are in no split, each with its reason."""
        return self.store.dropped

    def rows(self, *splits: str) -> np.ndarray:
        """Rows of the store that belong to any of the splits, ascending."""
        return np.flatnonzero(self.table["split"].isin(splits).to_numpy(dtype=bool))

    def train_dataloader(self) -> TimedLoader:
        """Batches of the global step the trainer stands at."""
        dataset = self._dataset(self.rows("train"))
        batches = StepBatches(
            len(dataset), self.config.batch_size, self.seed,
            position=lambda: self.trainer.global_step if self.trainer else 0,
            repeat_first=self.overfit_batches,
        )  # fmt: skip
        self._loader = TimedLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=_identity,
            num_workers=self.config.workers,
            persistent_workers=self.config.workers > 0,
            pin_memory=torch.cuda.is_available() and self.config.resident != "device",
        )
        return self._loader

    def val_dataloader(self) -> DataLoader | list:
        """Scans of `val` in the order of the store; an empty list when there are fewer than two."""
        rows = self.rows("val")
        if len(rows) < 2:
            return []
        size = self.config.batch_size
        order = list(range(len(rows)))
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        if len(batches) > 1 and len(batches[-1]) < size:  # a short batch has another contrastive loss
            batches.pop()
        return DataLoader(self._dataset(rows), batch_sampler=batches, collate_fn=_identity)

    def loader_wait_s(self) -> float:
        """Seconds the training process has waited for batches since the start."""
        return self._loader.waited_s if self._loader else 0.0

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """With `resident: device` the samples are picked where they live."""
        if "sample" not in batch:
            device = batch["index"].device
            if self._on_device is None or self._on_device.device != device:
                self._on_device = torch.from_numpy(np.array(self.store.arrays)).to(device)
            batch["sample"] = self._on_device[batch["index"]]
        return batch

    def _source(self) -> ArrayStore | np.ndarray | None:
        if self.config.resident == "device":
            return None
        if self.config.resident == "host" and self._in_memory is None:
            self._in_memory = np.array(self.store.arrays)
        return self.store if self._in_memory is None else self._in_memory

    def _dataset(self, rows: np.ndarray) -> ScanBatches:
        reuse = 0 if self.config.workers or torch.cuda.is_available() else 3
        return ScanBatches(self._source(), self.table, rows, reuse=reuse)

    def _split(self) -> pd.DataFrame:
        table, config = self.listed.table, self.config
        if config.split:
            return read_split(Path(config.split))
        split = self.reader.official_split()
        if split is None:
            split = draw_split(
                table,
                external_sites=config.external_sites,
                internal_fraction=config.internal_fraction,
                seed=config.split_seed,
            )
        return carve_val(split, fraction=config.val_fraction, seed=config.split_seed)


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


def _identity(batch: Any) -> Any:
    return batch
