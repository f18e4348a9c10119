"""Table + split + array store -> loaders: the one road that every cohort takes to the training process."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from brainage.config import DataConfig, nearest
from brainage.data.array_store import ArrayStore
from brainage.data.copies import leave_out_copies
from brainage.data.exclusion import exclude, parse_rule
from brainage.data.joined import JoinedStore, join_tables
from brainage.data.masking import load_mask
from brainage.data.overlap import add_groups
from brainage.data.sampling import StepBatches, scan_strata, scan_weights
from brainage.data.shards import ShardState, shard_state
from brainage.data.sharing import Shares
from brainage.data.splits import apply_split, refuse_leakage, split_hash
from brainage.data.store import estimate_bytes, prepare_store
from brainage.data.table import CohortTable, finish_dropped, person_numbers, write_tsv
from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract
from brainage.imaging.quality import COLUMNS as QUALITY_COLUMNS
from brainage.imaging.quality import write_quality
from brainage.runtime import warn
from brainage.runtime.ranks import rank, ranks
from brainage.runtime.signals import leave_to_parent
from data_modules.batches import Batch, DeviceSide, ScanBatches, TimedLoader
from data_modules.describe import describe
from data_modules.member_splits import choose_split
from data_modules.mixture import Member, join_listings, open_members, open_reader, rows_by_member
from data_modules.overlaps import Overlaps
from data_modules.reader import CohortReader

__all__ = ["CohortDataModule", "open_reader"]


class CohortDataModule(L.LightningDataModule):
    """One cohort, or several as one (`mixture`), each read once into its store and served in whole batches.

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
        self.members: list[Member] = open_members(config, reader)
        self.contract: InputContract = self.members[0].contract
        self.mask = load_mask(config.mask, config.mask_threshold, self.contract) if config.mask else None
        if self.mask is not None:
            self.contract = self.mask.contract(self.contract)
        self.listed: CohortTable = join_listings(self.members)
        self.split, self.split_source = choose_split(config, self.members, self.listed.table)
        self.split_hash = split_hash(self.split)
        self.rules = [parse_rule(text) for text in config.exclude]
        self._refuse_unknown_columns()
        self.overlaps = Overlaps(config.overlap, self.members, self.listed.table) if len(self.members) > 1 else None
        if self.overlaps:
            self.overlaps.refuse(self.split)  # by ids, before anything is read
        self._store: ArrayStore | None = None
        self._table: pd.DataFrame | None = None
        self._device_side: DeviceSide | None = None
        self._loader: TimedLoader | None = None

    @property
    def reader(self) -> CohortReader:
        """Of the first cohort."""
        return self.members[0].reader

    @property
    def store_path(self) -> Path:
        """`data.store`, or a folder named after the cohort, the modality and where the cohort lies.

        Of a mixture it holds no samples: those are in the stores of its members.
        """
        paths = self.member_paths()
        if len(paths) == 1:
            return paths[0]
        if self.config.store != "auto":
            return Path(self.config.store)
        digest = hashlib.blake2b("|".join(map(str, paths)).encode(), digest_size=4).hexdigest()
        return Path("stores") / f"{self.config.cohort}_{digest}"

    def planned(self) -> pd.DataFrame:
        """The scans that there will be, with their split, before any of them is read."""
        table = self._stored()
        return table[self._left_out(table).isna()].reset_index(drop=True)

    def folds(self) -> list[pd.DataFrame]:
        """The split of every fold of `data.folds`, in their order."""
        each = [dataclasses.replace(self.config, fold=fold) for fold in range(self.config.folds)]
        return [choose_split(config, self.members, self.listed.table)[0] for config in each]

    def excluded_by_table(self) -> int:
        """Scans that `data.exclude` leaves out by columns of the cohort's tables."""
        table = self._stored()
        return int(exclude(table, [str(r) for r in self.rules if r.column in table]).reasons.notna().sum())

    def bytes_needed(self) -> int:
        """Disk that the stores take."""
        return sum(estimate_bytes(len(rows), self.contract) for rows in self._rows_by_member())

    def describe(self) -> dict[str, str]:
        """Lines of the plan: scans, people and sites of each split, who was dropped or absent, and the store."""
        return describe(self)

    def prepare_shard(
        self, shard: tuple[int, int], on_progress: Callable[[int, int], None] | None = None
    ) -> list[ShardState]:
        """Read part i of n (from 1) of every store, as one job of an array does; what is done of each store then.

        The last step is `prepare`, which merges the parts without opening a source file.
        """
        states = []
        for member, rows, path in zip(self.members, self._rows_by_member(), self.member_paths(), strict=True):
            self._prepare_member(member, rows, path, on_progress, shard)
            states.append(shard_state(path) or ShardState(shard[1], list(range(1, shard[1] + 1)), []))
        return states

    def prepare(self, on_progress: Callable[[int, int], None] | None = None) -> ArrayStore:
        """Build each store, or finish building it, or open it when it is already there; a mixture then looks for
        people who are in two of its cohorts."""
        done, total = 0, len(self._stored())
        prepared: dict[int, ArrayStore] = {}  # by the member's place; data.limit may leave nobody of a small one
        for place, (rows, path) in enumerate(zip(self._rows_by_member(), self.member_paths(), strict=True)):
            if len(rows):
                advance = _further(on_progress, done, total)
                prepared[place] = self._prepare_member(self.members[place], rows, path, advance)
                done += len(rows)
        self._table = None
        self._store = self._view(prepared)
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

    def overlap(self) -> pd.DataFrame | None:
        """Pairs of people of several cohorts who are one person, as far as seen; None of a cohort on its own."""
        return self.overlaps.report(self.split) if self.overlaps is not None else None

    def rows(self, *splits: str) -> np.ndarray:
        """Rows of the store that belong to any of the splits, ascending."""
        return np.flatnonzero(self.table["split"].isin(splits).to_numpy(dtype=bool))

    def train_dataloader(self) -> TimedLoader:
        """This rank's parts of the batches, of the global step the trainer stands at on."""
        dataset = self._dataset(self.rows("train"))
        trained = self.table.iloc[dataset.rows]
        balance: dict[str, Any] = {"balance": self.config.balance, "cohort_weights": self.config.weights}
        batches = StepBatches(
            len(dataset), self.config.batch_size, self.seed,
            position=lambda: self.trainer.global_step if self.trainer else 0,
            repeat_first=self.overfit_batches,
            weights=scan_weights(trained, **balance), strata=scan_strata(trained, **balance),
        )  # fmt: skip
        self._loader = TimedLoader(
            dataset,
            batch_sampler=Shares(batches, rank(), ranks()),
            collate_fn=_identity,
            num_workers=self.config.workers,
            persistent_workers=self.config.workers > 0,
            worker_init_fn=_quiet_worker,
            pin_memory=torch.cuda.is_available() and self.config.resident != "device",
        )
        return self._loader

    def val_dataloader(self) -> DataLoader | list:
        """Scans of `val` in the order of the store; an empty list when there are fewer than two.

        The fewest batches of at most `batch_size` that differ by one scan at most: a contrastive loss depends on the
        size of its batch. Each rank gets its part of each, which may be empty.
        """
        rows = self.rows("val")
        if len(rows) < 2:
            return []
        batches = [part.tolist() for part in np.array_split(range(len(rows)), -(-len(rows) // self.config.batch_size))]
        shares = Shares(batches, rank(), ranks(), may_be_none=True)
        return DataLoader(self._dataset(rows), batch_sampler=shares, collate_fn=_identity)

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

    def _stored(self) -> pd.DataFrame:
        """The scans that the stores hold, with their split.

        `data.limit` takes people in the order of a hash, each with all scans: ids are often sorted by site.
        """
        table = apply_split(self.listed.table, self.split)
        return table.iloc[self._limited(table)].reset_index(drop=True)

    def _limited(self, table: pd.DataFrame) -> np.ndarray:
        """Rows of the first `data.limit` scans of each split, ascending; all of them without a limit."""
        if not self.config.limit:
            return np.arange(len(table))
        order = np.argsort(person_numbers(table), kind="stable")
        kept = table.iloc[order].assign(row=order).groupby("split", sort=False).head(self.config.limit)
        return np.sort(kept["row"].to_numpy())

    def _rows_by_member(self) -> list[np.ndarray]:
        return rows_by_member(self.members, self._limited(apply_split(self.listed.table, self.split)))

    def member_paths(self) -> list[Path]:
        digest = self.mask.digest if self.mask is not None else ""
        return [member.store_path(self.config.limit, self.split_hash, digest) for member in self.members]

    def _left_out(self, table: pd.DataFrame) -> pd.Series:
        """Why a listed scan is not used here; NA where it is. Rules about quality wait until there are samples."""
        rules = [str(rule) for rule in self.rules if rule.column in table]
        return self._by_overlap(table).fillna(exclude(table, rules).reasons)

    def _by_overlap(self, table: pd.DataFrame) -> pd.Series:
        if self.overlaps is None:
            return pd.Series(pd.NA, index=table.index, dtype="string")
        return self.overlaps.left_out(table)

    def _refuse_unknown_columns(self) -> None:
        known = [*self.listed.table.columns, *QUALITY_COLUMNS]
        for rule in self.rules:
            if rule.column not in known:
                raise ConfigError(f"data.exclude: {rule}: no column {rule.column!r}{nearest(rule.column, known)}")

    def _prepare_member(
        self,
        member: Member,
        rows: np.ndarray,
        path: Path,
        on_progress: Callable[[int, int], None] | None,
        shard: tuple[int, int] | None = None,
    ) -> ArrayStore:
        table = member.listed.table.iloc[rows]
        return prepare_store(
            # A split belongs to an experiment, the store to all of them.
            table.assign(split=pd.array([pd.NA] * len(table), dtype="string")),
            member.contract,
            member.reader.read,
            path,
            workers=self.config.prepare_workers,
            dropped=member.listed.dropped,
            on_progress=on_progress,
            stamp=member.reader.stamp,
            mask=self.mask,
            shard=shard,
        )

    def _view(self, prepared: Mapping[int, ArrayStore]) -> ArrayStore:
        """The one store, or those of a mixture as one, without the scans that are left out."""
        members, stores = [self.members[place] for place in prepared], list(prepared.values())
        tables = [member.named(store.table) for member, store in zip(members, stores, strict=True)]
        if self.overlaps is not None:
            self.overlaps.look_at(stores, tables, self.store_path)
            self.overlaps.judge(self.split)
            tables = [add_groups(table, self.overlaps.groups) for table in tables]
        # of all members at once: a column that one of them lacks is missing there, and matches no rule
        ruled = exclude(join_tables(tables), self.config.exclude, lambda: _qualities(members, stores))
        for line in ruled.remarks:
            warn(line)
        ends = np.cumsum([len(table) for table in tables])
        by_rule = [ruled.reasons.iloc[end - len(table) : end] for table, end in zip(tables, ends, strict=True)]
        by_overlap = [self._by_overlap(table) for table in tables]
        reasons = [first.fillna(why.set_axis(first.index)) for first, why in zip(by_overlap, by_rule, strict=True)]
        reasons, copies = leave_out_copies(tables, reasons, self.split, self.config.overlap)
        if copies:
            warn(copies)
        if self.overlaps is None and not self.rules and not any(why.notna().any() for why in reasons):
            return stores[0]
        unused = [table.assign(reason=why)[why.notna()] for table, why in zip(tables, reasons, strict=True)]
        lost = [member.named(store.dropped) for member, store in zip(members, stores, strict=True)]
        view = JoinedStore(
            stores,
            tables,
            # not the store's own folder: what is computed of fewer scans, such as their quality, would be kept there
            path=self.store_path if self.overlaps else self.store_path.with_name(f"{self.store_path.name}.kept"),
            dropped=finish_dropped(*lost, *unused),
            keep=[why.isna().to_numpy() for why in reasons],
        )
        view.path.mkdir(parents=True, exist_ok=True)
        write_tsv(view.dropped, view.path / "dropped.tsv")
        return view


def _qualities(members: Sequence[Member], stores: Sequence[ArrayStore]) -> pd.DataFrame:
    """Computed quality of all stores, kept beside each, under the names of the joined table."""
    parts = [member.named(write_quality(store)) for member, store in zip(members, stores, strict=True)]
    return pd.concat(parts, ignore_index=True)


def _further(
    on_progress: Callable[[int, int], None] | None, done: int, total: int
) -> Callable[[int, int], None] | None:
    """`on_progress` of one store among several: counts on from `done`."""
    return on_progress and (lambda finished, _: on_progress(done + finished, total))


def _quiet_worker(number: int) -> None:
    leave_to_parent()


def _identity(batch: Any) -> Any:
    return batch
