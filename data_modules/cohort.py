"""Table + split + array store -> loaders: the one road that every cohort takes to the training process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from brainage.config import DataConfig, nearest
from brainage.data.array_store import ArrayStore
from brainage.data.sampling import StepBatches
from brainage.data.splits import apply_split, carve_val, draw_split, read_split, refuse_leakage, split_hash
from brainage.data.store import estimate_bytes, prepare_store
from brainage.data.table import SPLITS, CohortTable, person_keys, person_numbers
from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract
from data_modules import COHORTS
from data_modules.batches import Batch, DeviceSide, ScanBatches, TimedLoader
from data_modules.reader import CohortReader


def open_reader(config: DataConfig) -> CohortReader:
    """The reader of the configured cohort; ConfigError on an unknown cohort or modality, DataError on the root."""
    if config.cohort not in COHORTS:
        raise ConfigError(f"data.cohort={config.cohort}: unknown{nearest(config.cohort, list(COHORTS))}")
    return COHORTS[config.cohort](config.root, config.modality, config.spacing_mm, config.options)


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
        self._device_side: DeviceSide | None = None
        self._loader: TimedLoader | None = None

    @property
    def store_path(self) -> Path:
        """`data.store`, or a folder named after the cohort, the modality and where the cohort lies."""
        if self.config.store != "auto":
            return Path(self.config.store)
        identity = f"{self.reader.root.resolve()}|{self.config.spacing_mm}|{self.config.limit}"
        if self.config.limit:  # which scans those are depends on the split
            identity += f"|people by hash|{self.split_hash}"
        digest = hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()
        return Path("stores") / f"{self.config.cohort}_{self.config.modality}_{digest}"

    def planned(self) -> pd.DataFrame:
        """The scans that a store will hold, with their split, before any of them is read.

        `data.limit` takes people in the order of a hash, each with all scans: ids are often sorted by site.
        """
        table = apply_split(self.listed.table, self.split)
        if self.config.limit:
            shuffled = table.iloc[np.argsort(person_numbers(table), kind="stable")]
            kept = shuffled.groupby("split", sort=False).head(self.config.limit).index
            table = table.loc[kept.sort_values()].reset_index(drop=True)
        return table

    def bytes_needed(self) -> int:
        """Disk the store takes."""
        return estimate_bytes(len(self.planned()), self.contract)

    def describe(self) -> dict[str, str]:
        """Lines of the plan: scans, people and sites of each split, who was dropped or absent, and the store."""
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
        absent = self.reader.without_scan()
        if absent:
            named = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
            lines["absent"] = (
                f"{len(absent)} people of the cohort's tables have no {self.config.modality} here: {named}"
            )
        lines["sample"] = f"{tuple(self.contract.shape)} {self.contract.dtype}, {self.contract.modality}"
        state = "prepared" if self.store_path.is_dir() else "to be prepared"
        lines["store"] = f"{self.store_path} ({self.bytes_needed() / 2**30:.2f} GiB, {state})"
        return lines

    def prepare(self, on_progress: Callable[[int, int], None] | None = None) -> ArrayStore:
        """Build the store, or finish building it, or open it when it is already there."""
        table = self.planned()
        self._store = prepare_store(
            # A split belongs to an experiment, the store to all of them.
            table.assign(split=pd.array([pd.NA] * len(table), dtype="string")),
            self.contract,
            self.reader.read,
            self.store_path,
            workers=self.config.prepare_workers,
            dropped=self.listed.dropped,
            on_progress=on_progress,
            stamp=self.reader.stamp,
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
        """Scans of `val` in the order of the store; an empty list when there are fewer than two.

        The fewest batches of at most `batch_size` that differ by one scan at most: a contrastive loss depends on the
        size of its batch.
        """
        rows = self.rows("val")
        if len(rows) < 2:
            return []
        batches = [part.tolist() for part in np.array_split(range(len(rows)), -(-len(rows) // self.config.batch_size))]
        return DataLoader(self._dataset(rows), batch_sampler=batches, collate_fn=_identity)

    def loader_wait_s(self) -> float:
        """Seconds the training process has waited for batches since the start."""
        return self._loader.waited_s if self._loader else 0.0

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """With `resident: device` the samples are picked where they live; in-mask rows become volumes there."""
        if self._device_side is None or self._device_side.store is not self.store:
            self._device_side = DeviceSide(self.store)
        return self._device_side(batch)

    def _source(self) -> ArrayStore | None:
        if self.config.resident == "device":
            return None
        if self.config.resident == "host":
            self.store.preload()  # into the one file cache that all ranks and workers of the node share
        return self.store

    def _dataset(self, rows: np.ndarray) -> ScanBatches:
        reuse = 0 if self.config.workers or torch.cuda.is_available() else 3
        return ScanBatches(self._source(), self.table, rows, reuse=reuse)

    def _split(self) -> pd.DataFrame:
        """The split file, else the official split, else a drawn one; val is carved out of its train people, unless a
        split file has val itself. Keys of a split that is not drawn, or of a val that is not carved, are refused."""
        config, drawn = self.config, ["external_sites", "internal_fraction"]
        if config.split:
            self.split_source = "file"
            split = read_split(Path(config.split))
            has_val = bool((split["split"] == "val").any())
            self._refuse_without_effect([*drawn, *(["val_fraction"] if has_val else [])], f"data.split={config.split}")
            if has_val:
                return split
        elif (official := self.reader.official_split()) is not None:
            self.split_source = "official"
            self._refuse_without_effect(drawn, f"the official split of {config.cohort}")
            split = official
        else:
            self.split_source = "drawn"
            split = draw_split(
                self.listed.table,
                external_sites=config.external_sites,
                internal_fraction=config.internal_fraction,
                seed=config.split_seed,
            )
        return carve_val(split, fraction=config.val_fraction, seed=config.split_seed)

    def _refuse_without_effect(self, keys: list[str], ruling: str) -> None:
        default = DataConfig()
        given = [key for key in keys if getattr(self.config, key) != getattr(default, key)]
        if given:
            found = ", ".join(f"data.{key}={getattr(self.config, key)}" for key in given)
            back = " ".join(f"data.{key}={getattr(default, key)}" for key in given)
            raise ConfigError(
                f"{found}: without effect, since {ruling} says who is in which split; expected {back}, or another "
                "split as a file, named with data.split"
            )


def _identity(batch: Any) -> Any:
    return batch
