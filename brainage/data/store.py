"""The array store: every sample of a cohort decoded once, in one file that all processes of a node share.

A store is a folder of files: `arrays.npy` [n, *sample shape] (volumes fp16, vectors fp32), or [n, K] of the K voxels
in a mask, `mask.npy`; `table.parquet` (same order, plus a `digest` of each row's bytes), `dropped.tsv` (every scan left
out, with its reason) and `contract.json` (what the samples are, what the store was built from); `stamps.tsv` tells
whether the files behind the scans are still those files. It is built beside its place, in `<store>.building`, or by
several jobs in `<store>.shards`, and renamed when it is whole; it holds no time of its own, so that two builds from the
same files are equal to the byte, however often they were interrupted and in however many shards.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.data import shards
from brainage.data.array_store import (
    ARRAYS,
    CONTRACT,
    DROPPED,
    MASK,
    TABLE,
    ArrayStore,
    checksum_of,
    estimate_bytes,
    layout_of,
)
from brainage.data.claim import only_process
from brainage.data.filling import Progress, Read, Row, allocate, compact, fill, forget, reread
from brainage.data.masking import Mask
from brainage.data.order import Order, differences, refuse_differences, refuse_small_disk, store_identity
from brainage.data.stamps import STAMPS, Sources, Stamp, join_stamps, refuse_replaced
from brainage.data.table import scan_keys, validate, write_table, write_tsv
from brainage.errors import StoreError
from brainage.imaging.contract import InputContract
from brainage.runtime.files import write_atomically, write_json_atomic

__all__ = ["ArrayStore", "estimate_bytes", "prepare_store", "store_identity"]

_IDENTITY, _JOURNAL = "building.json", "journal.tsv"
_OF_THE_STORE = ["digest", "outside_mask"]  # columns that a store adds to its table
_MOST_OUTSIDE = 0.01  # share of the intensity that a mask may take away without a warning
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
    mask: Mask | None = None,
    shard: tuple[int, int] | None = None,
) -> ArrayStore:
    """Build the store of a finished table at `out`, go on building it, or open it.

    `read(path)` returns the sample of a locator; it must be picklable when there are several workers (0: one a core
    this process may use). A store is identified by its contract and by the keys and locators of its scans: other ages,
    splits or extra columns only refresh `table.parquet`. Scans that cannot be read go to `dropped.tsv`, beside the rows
    of `dropped`. `on_progress(done, total)` is called after each sample.

    `stamp(path)` is a text that changes with the file behind a locator; without it those files are never looked at
    again. Scans of another stamp than before are read again: when all are what they were (files copied or touched), the
    new stamps are kept; a store is not used beside files that hold something else.

    `mask` (see `brainage.data.masking.load_mask`) keeps the voxels inside it only; the store's contract names it, and a
    warning says how much lies outside when that is over 1 % of the summed intensity on average.

    `shard=(i, n)`, i from 1, prepares block i of n only, in any order and on any nodes at once, see
    `brainage.data.shards`; `on_progress` counts that block. It returns the store of that part (its `shard` is (i, n)),
    or the whole store once that is there. A call without `shard` merges the parts when all are done.

    Raises StoreError when `out` or its unfinished build is of something else, a file was replaced or mended since,
    another process is at it, the disk is too small or runs full (what is done is kept: run again), when not one scan
    can be read, or when shards are missing (it lists them).
    """
    table = table.drop(columns=_OF_THE_STORE, errors="ignore").reset_index(drop=True)
    if mask is not None:
        contract = mask.contract(contract)
    elif contract.mask:
        raise StoreError(f"store {out}: its contract has the mask {contract.mask['name']}; expected its voxels as well")
    sources = Sources(table, stamp)
    order = Order(Path(out), table, contract, dropped, read, workers, on_progress, sources, mask)
    validate(order.table, f"table for store {out}")
    return _prepare(order if shard is None else _shard_of(order, shard))


def _prepare(order: Order) -> ArrayStore:
    out = order.out
    if order.is_there and (store := _reuse(order, refresh=False)):
        return store  # without the lock: several ranks may open one store at once
    try:
        order.out.parent.mkdir(parents=True, exist_ok=True)
        with only_process(order.out):
            if not order.is_there:  # else it is to be refreshed, or was finished by somebody a moment ago
                if not (order.building / CONTRACT).is_file():  # written last: with it, only the move is left to do
                    _build(order)
                else:
                    _enter(order)
                _move_in(order)
            store = _reuse(order, refresh=True)
            assert store is not None
            return store
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(
                f"store {out}: no space left ({error}); {order.need}; "
                f"free some and run again (what is done is kept), or name another disk with data.store=DIR"
            ) from error
        raise StoreError(f"store {out}: {error}; mend this and run again (what is done is kept)") from error


def _shard_of(order: Order, shard: tuple[int, int]) -> Order:
    """The order of one shard that is to be prepared now; the whole one when that store is there already."""
    block = shards.block_of(shard, len(order.table))
    if order.is_there:
        return order
    part = _part(order, shard, block)
    if not part.is_there and order.building.exists():
        raise StoreError(
            f"store {order.out}: {order.building} is an unfinished build or merge; end it without --shard, "
            f"or delete that folder"
        )
    shards.refuse_other_division(order.out, shard[1])
    return part


def _part(order: Order, shard: tuple[int, int], block: slice) -> Order:
    table = order.table.iloc[block].reset_index(drop=True)
    sources = Sources(table, order.sources.stamp)
    out = shards.part_path(order.out, shard)
    return replace(order, out=out, table=table, dropped=None, sources=sources, shard=shard, whole=order)


def _build(order: Order) -> None:
    """Fill the folder to build in: from the source files, or from the shards that were begun."""
    state = shards.shard_state(order.out)
    parts = []
    if state:
        shards.refuse_missing(order.out, state)
        parts = [_open_part(order, (i, state.n)) for i in state.done]
    _enter(order)
    refuse_small_disk(order)
    allocate(order.layout)
    if parts:
        rows = shards.merge_parts(parts, scan_keys(order.table).tolist(), order.layout, order.on_progress)
        join_stamps([part.path for part in parts], order.building)
        kept = list(range(sum(len(part) for part in parts)))  # already together
    else:
        journal = order.building / _JOURNAL
        rows = fill(order.layout, order.read, order.locators, journal, order.workers, order.on_progress)
        kept = [row.place for row in rows if not row.damage]
    compact(order.layout, kept)
    _describe(order, rows)


def _open_part(order: Order, shard: tuple[int, int]) -> ArrayStore:
    part = _part(order, shard, shards.block_of(shard, len(order.table)))
    store = ArrayStore.open(part.out)
    refuse_differences(part, store)
    return store


def _describe(order: Order, rows: list[Row]) -> None:
    """Write the files beside the arrays, contract.json last."""
    kept = [row.place for row in rows if not row.damage]
    keys = scan_keys(order.table)
    if not kept:
        shutil.rmtree(order.building)  # most often a folder that was not mounted: nothing worth going on with
        hint = "" if order.shard is None else "; where all are really damaged, divide into fewer shards"
        raise StoreError(
            f"store {order.out}: none of {len(rows)} scans could be read; first {keys[0]}: {rows[0].damage}{hint}"
        )
    damaged = {keys[row.place]: row.damage for row in rows if row.damage}
    if damaged:
        _log.warning(
            "store %s: %d of %d scans are damaged, see its %s; after mending their files delete the store and prepare "
            "it again", order.out, len(damaged), len(rows), DROPPED
        )  # fmt: skip
    table = order.table.iloc[kept].reset_index(drop=True)
    table["digest"] = pd.array([rows[place].digest for place in kept], dtype="string")
    if order.mask:
        table["outside_mask"] = np.array([rows[place].outside for place in kept])
        _warn_of_what_is_lost(order, table)
        inside = order.mask.inside
        write_atomically(order.building / MASK, lambda temporary: _save(temporary, inside))
    write_table(table, order.building / TABLE)
    write_tsv(order.all_dropped(damaged), order.building / DROPPED)
    write_json_atomic(order.building / CONTRACT, {**order.identity, "damaged": damaged, "checksum": checksum_of(table)})


def _warn_of_what_is_lost(order: Order, table: pd.DataFrame) -> None:
    lost = table["outside_mask"]
    if order.mask and lost.mean() > _MOST_OUTSIDE:
        _log.warning(
            "store %s: on average %.1f %% of a scan's summed intensity lies outside the mask %s > %g (%d of %d voxels) "
            "and is 0 from now on; most of %s: %.1f %%", order.out, 100 * lost.mean(), order.mask.name,
            order.mask.threshold, order.mask.voxels, order.mask.inside.size, scan_keys(table)[lost.idxmax()],
            100 * lost.max(),
        )  # fmt: skip


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)


def _enter(order: Order) -> None:
    """Make the folder to build in, unless it holds an unfinished build of the same store.

    An unfinished build of something else is refused, never deleted, since it may hold hours of work.
    """
    for name in (CONTRACT, _IDENTITY):
        if (order.building / name).is_file():
            differs = differences(json.loads((order.building / name).read_text(encoding="utf-8")), order.identity)
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


def _read_replaced_again(order: Order) -> None:
    """Take out of an unfinished build what was read from files that were replaced since."""
    if not (order.building / CONTRACT).is_file():  # else its table is written: `_reuse` will compare
        forget(order.building / _JOURNAL, order.sources.changed(order.building))
        order.sources.keep(order.building)


def _has_samples(building: Path) -> bool:
    journal = building / _JOURNAL
    return (building / CONTRACT).is_file() or (journal.is_file() and journal.stat().st_size > 0)


def _move_in(order: Order) -> None:
    for path in order.building.iterdir():  # the journal, and what a killed process left half-written
        if path.name not in (ARRAYS, TABLE, DROPPED, CONTRACT, STAMPS, MASK):
            path.unlink()
    _flush_folder(order.building)
    if order.whole is None:
        shards.remove_parts(order.out)  # before the move: a store never has left-over shards beside it
    os.rename(order.building, order.out)
    _flush_folder(order.out.parent)


def _reuse(order: Order, *, refresh: bool) -> ArrayStore | None:
    """The store that is there, with this table; None when its files need a refresh that was not asked for."""
    store = ArrayStore.open(order.out)
    refuse_differences(order, store)
    damaged = store.record["damaged"]
    table = order.table[~scan_keys(order.table).isin(damaged)].reset_index(drop=True)
    for name in _OF_THE_STORE:
        if name in store.table:
            table[name] = store.table[name]
    dropped = store.dropped if order.dropped is None else order.all_dropped(damaged)
    changed = order.sources.changed(order.out)
    if not changed and table.equals(store.table) and dropped.equals(store.dropped):
        return store
    if not refresh:
        return None
    if changed:
        layout = layout_of(order.out, len(order.table), order.contract, order.mask)
        with closing(reread(layout, order.read, order.locators, changed, order.workers)) as rows:
            refuse_replaced(order.table, store, rows, len(changed), order.on_progress)
        _log.info("store %s: %d scans have newer files of the same values", order.out, len(changed))
        order.sources.keep(order.out)
    write_table(table, order.out / TABLE)
    write_tsv(dropped, order.out / DROPPED)
    return ArrayStore.open(order.out)


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
