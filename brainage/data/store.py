"""The array store: every sample of a cohort decoded once, in one file that all processes of a node share.

A store is a folder of files: `arrays.npy` [n, *sample shape] (volumes fp16, vectors fp32), `table.parquet` (same
order, plus a `digest` of each row's bytes), `dropped.tsv` (every scan left out, with its reason) and `contract.json`
(what the samples are, what the store was built from); `stamps.tsv` tells whether the files behind the scans are still
those files. It is built beside its place, in `<store>.building`, and renamed when it is whole; it holds no time of its
own, so that two builds from the same files are equal to the byte.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from brainage.data.array_store import (
    ARRAYS,
    CONTRACT,
    DROPPED,
    SCHEMA,
    TABLE,
    ArrayStore,
    checksum_of,
    estimate_bytes,
    layout_of,
)
from brainage.data.filling import Layout, Progress, Read, allocate, compact, digest_of, fill, forget, reread
from brainage.data.stamps import STAMPS, Sources, Stamp, refuse_replaced
from brainage.data.table import finish_dropped, scan_keys, validate, write_table, write_tsv
from brainage.errors import StoreError
from brainage.imaging.contract import InputContract
from brainage.runtime.files import write_json_atomic

__all__ = ["ArrayStore", "estimate_bytes", "prepare_store"]

_IDENTITY, _JOURNAL = "building.json", "journal.tsv"
_SLACK_BYTES = 2**20  # for the files beside the arrays
_log = logging.getLogger(__name__)


def prepare_store(
    table: pd.DataFrame,
    contract: InputContract,
    read: Read,
    out: Path,
    *,
    workers: int = 0,
    dropped: pd.DataFrame | None = None,
    on_progress: Progress | None = None,
    stamp: Stamp | None = None,
) -> ArrayStore:
    """Build the store of a finished table at `out`, go on building it, or open it.

    `read(path)` returns the sample of a locator; it must be picklable when there are several workers (0: one a core
    this process may use). A store is identified by its contract and by the keys and locators of its scans: other ages,
    splits or extra columns only refresh `table.parquet`. Scans that cannot be read go to `dropped.tsv`, beside the rows
    of `dropped`. `on_progress(done, total)` is called after each sample.

    `stamp(path)` is a text that changes with the file behind a locator; without it those files are never looked at
    again. Scans of another stamp than before are read again: when all are what they were (files copied or touched), the
    new stamps are kept; a store is not used beside files that hold something else.

    Raises StoreError when `out` or its unfinished build is of something else, a file was replaced or mended since,
    another process is at it, the disk is too small or runs full (what is done is kept: run again), or when not one scan
    can be read.
    """
    table = table.drop(columns="digest", errors="ignore").reset_index(drop=True)
    order = _Order(Path(out), table, contract, dropped, read, workers, on_progress, Sources(table, stamp))
    validate(order.table, f"table for store {out}")
    if order.is_there and (store := _reuse(order, refresh=False)):
        return store  # without the lock: several ranks may open one store at once
    try:
        order.out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(order.out):
            if not order.is_there:  # else it is to be refreshed, or was finished by somebody a moment ago
                _enter(order)
                if not (order.building / CONTRACT).is_file():  # written last: with it, only the move is left to do
                    _fill_folder(order)
                _move_in(order)
            store = _reuse(order, refresh=True)
            assert store is not None
            return store
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(
                f"store {out}: no space left ({error}); {_need(order.layout)}; "
                f"free some and run again (what is done is kept), or name another disk with data.store=DIR"
            ) from error
        raise StoreError(f"store {out}: {error}; mend this and run again (what is done is kept)") from error


@dataclass(frozen=True)
class _Order:
    """What is asked for, and where."""

    out: Path
    table: pd.DataFrame
    contract: InputContract
    dropped: pd.DataFrame | None
    read: Read
    workers: int
    on_progress: Progress | None
    sources: Sources

    @property
    def building(self) -> Path:
        return self.out.with_name(self.out.name + ".building")

    @property
    def layout(self) -> Layout:
        return layout_of(self.building, len(self.table), self.contract)

    @property
    def locators(self) -> list[str]:
        return self.table["path"].tolist()

    @property
    def is_there(self) -> bool:
        """An empty folder counts as nothing."""
        return self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir()))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a store is of: the part of contract.json that is known before anything is read."""
        scans = [scan_keys(self.table).tolist(), self.locators, str(self.contract.dtype), SCHEMA]
        return {
            "schema": SCHEMA,
            "contract": self.contract.to_dict(),
            "scans": len(self.table),  # asked for: with the damaged ones
            "fingerprint": digest_of(json.dumps(scans).encode()),
        }

    def all_dropped(self, damaged: dict[str, str]) -> pd.DataFrame:
        reasons = "damaged: " + scan_keys(self.table).map(damaged).astype("string")
        rows = self.table.assign(reason=reasons)[reasons.notna()]
        return finish_dropped(rows) if self.dropped is None else finish_dropped(rows, self.dropped)


def _fill_folder(order: _Order) -> None:
    """Write the files of the store, contract.json last."""
    _refuse_small_disk(order)
    allocate(order.layout)
    rows = fill(order.layout, order.read, order.locators, order.building / _JOURNAL, order.workers, order.on_progress)
    kept = [row.place for row in rows if not row.damage]
    keys = scan_keys(order.table)
    if not kept:
        shutil.rmtree(order.building)  # most often a folder that was not mounted: nothing worth going on with
        raise StoreError(
            f"store {order.out}: none of {len(rows)} scans could be read; first {keys[0]}: {rows[0].damage}"
        )
    damaged = {keys[row.place]: row.damage for row in rows if row.damage}
    if damaged:
        _log.warning(
            "store %s: %d of %d scans are damaged, see its %s; after mending their files delete the store and prepare "
            "it again", order.out, len(damaged), len(rows), DROPPED
        )  # fmt: skip
    compact(order.layout, kept)
    table = order.table.iloc[kept].reset_index(drop=True)
    table["digest"] = pd.array([rows[place].digest for place in kept], dtype="string")
    write_table(table, order.building / TABLE)
    write_tsv(order.all_dropped(damaged), order.building / DROPPED)
    write_json_atomic(order.building / CONTRACT, {**order.identity, "damaged": damaged, "checksum": checksum_of(table)})


def _enter(order: _Order) -> None:
    """Make the folder to build in, unless it holds an unfinished build of the same store.

    An unfinished build of something else is refused, never deleted, since it may hold hours of work.
    """
    for name in (CONTRACT, _IDENTITY):
        if (order.building / name).is_file():
            differs = _differences(json.loads((order.building / name).read_text(encoding="utf-8")), order.identity)
            if not differs:
                _read_replaced_again(order)
                return
            if _has_samples(order.building):
                raise StoreError(
                    f"store {order.out}: the unfinished build {order.building} is of something else: {differs}; "
                    f"delete that folder, or name another store with data.store=DIR"
                )
    order.building.mkdir(exist_ok=True)
    for name in (ARRAYS, _JOURNAL):  # of an attempt that stored no sample
        (order.building / name).unlink(missing_ok=True)
    order.sources.keep(order.building)
    write_json_atomic(order.building / _IDENTITY, order.identity)


def _read_replaced_again(order: _Order) -> None:
    """Take out of an unfinished build what was read from files that were replaced since."""
    if not (order.building / CONTRACT).is_file():  # else its table is written: `_reuse` will compare
        forget(order.building / _JOURNAL, order.sources.changed(order.building))
        order.sources.keep(order.building)


def _has_samples(building: Path) -> bool:
    journal = building / _JOURNAL
    return (building / CONTRACT).is_file() or (journal.is_file() and journal.stat().st_size > 0)


def _move_in(order: _Order) -> None:
    for path in order.building.iterdir():  # the journal, and what a killed process left half-written
        if path.name not in (ARRAYS, TABLE, DROPPED, CONTRACT, STAMPS):
            path.unlink()
    _flush_folder(order.building)
    os.rename(order.building, order.out)
    _flush_folder(order.out.parent)


def _reuse(order: _Order, *, refresh: bool) -> ArrayStore | None:
    """The store that is there, with this table; None when its files need a refresh that was not asked for."""
    store = ArrayStore.open(order.out)
    differs = _differences(store.record, order.identity)
    if differs:
        raise StoreError(
            f"store {order.out} is of something else: {differs}; "
            f"name another folder with data.store=DIR, or delete this one"
        )
    damaged = store.record["damaged"]
    table = order.table[~scan_keys(order.table).isin(damaged)].reset_index(drop=True)
    table["digest"] = store.table["digest"]
    dropped = store.dropped if order.dropped is None else order.all_dropped(damaged)
    changed = order.sources.changed(order.out)
    if not changed and table.equals(store.table) and dropped.equals(store.dropped):
        return store
    if not refresh:
        return None
    if changed:
        layout = layout_of(order.out, len(order.table), order.contract)
        with closing(reread(layout, order.read, order.locators, changed, order.workers)) as rows:
            refuse_replaced(order.table, store, rows, len(changed), order.on_progress)
        _log.info("store %s: %d scans have newer files of the same values", order.out, len(changed))
        order.sources.keep(order.out)
    write_table(table, order.out / TABLE)
    write_tsv(dropped, order.out / DROPPED)
    return ArrayStore.open(order.out)


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What distinguishes two identities, in words; empty when they are of the same store."""
    if found["schema"] != SCHEMA:
        return f"schema {found['schema']}, expected {SCHEMA}: begun by another brainage"
    expected, present = (InputContract.from_dict(identity["contract"]) for identity in (wanted, found))
    phrases = expected.differences(present)
    if found["scans"] != wanted["scans"]:
        phrases.append(f"expected {wanted['scans']} scans, found {found['scans']}")
    elif found["fingerprint"] != wanted["fingerprint"]:
        phrases.append(f"its {found['scans']} scans have other keys, files or another order")
    return "; ".join(phrases)


def _refuse_small_disk(order: _Order) -> None:
    path = order.layout.path
    claimed = path.stat().st_blocks * 512 if path.exists() else 0  # by an earlier start
    free = shutil.disk_usage(order.building).free
    if order.layout.nbytes - claimed + _SLACK_BYTES > free:
        raise StoreError(
            f"store {order.out}: {_need(order.layout)}, {free / 2**30:.2f} GiB are free; "
            f"name another disk with data.store=DIR"
        )


def _need(layout: Layout) -> str:
    return f"{layout.n} samples of {layout.shape} {layout.dtype} need {layout.nbytes / 2**30:.2f} GiB"


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold `<out>.lock`; the kernel releases it with the process, so that the file may stay and is never stale."""
    path = out.with_name(out.name + ".lock")
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text(encoding="utf-8").strip() or "unknown"
            raise StoreError(
                f"store {out}: process {holder} is preparing it; wait, or name another folder with data.store=DIR"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
