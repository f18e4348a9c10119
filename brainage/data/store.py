"""The array store: every sample of a cohort decoded once, in one file that all processes of a node share.

A store is a folder of four files: `arrays.npy` [n, *sample shape] (volumes fp16, vectors fp32), `table.parquet` (same
order, plus a `digest` of each row's bytes), `dropped.tsv` (every scan left out, with its reason) and `contract.json`
(what the samples are, what the store was built from). It is built beside its place, in `<store>.building`, and renamed
when it is whole; there are no time stamps in it, so that two builds from the same input are equal to the byte.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from brainage.data.array_store import (
    CONTRACT,
    DROPPED,
    SCHEMA,
    TABLE,
    ArrayStore,
    checksum_of,
    estimate_bytes,
    layout_of,
)
from brainage.data.files import write_atomically
from brainage.data.filling import Layout, Progress, Read, allocate, compact, digest_of, fill
from brainage.data.table import finish_dropped, scan_keys, validate, write_table, write_tsv
from brainage.errors import StoreError
from brainage.imaging.contract import InputContract

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
) -> ArrayStore:
    """Build the store of a finished table at `out`, go on building it, or open it.

    `read(path)` returns the sample of a locator; it must be picklable when there are several workers (0: one a core
    this process may use). A store is identified by its contract and by the keys and locators of its scans: other ages,
    splits or extra columns only refresh `table.parquet`. Scans that cannot be read go to `dropped.tsv`, beside the rows
    of `dropped`. `on_progress(done, total)` is called after each sample.

    Raises StoreError when `out` or its unfinished build is of something else, another process is at it, the disk is too
    small or runs full (what is done is kept: run again), or when not one scan can be read.
    """
    out = Path(out)
    table = table.drop(columns="digest", errors="ignore").reset_index(drop=True)
    validate(table, f"table for store {out}")
    identity = _identity(table, contract)
    if _is_taken(out) and (store := _reuse(out, table, identity, dropped, refresh=False)):
        return store  # without the lock: several ranks may open one store at once
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(out):
            if not _is_taken(out):  # else it is to be refreshed, or was finished by somebody a moment ago
                building = _enter(out, identity)
                if not (building / CONTRACT).is_file():  # written last: with it, only the renaming is left to do
                    _fill_folder(building, out, table, contract, identity, read, workers, dropped, on_progress)
                _move_in(building, out)
            store = _reuse(out, table, identity, dropped, refresh=True)
            assert store is not None
            return store
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreError(
                f"store {out}: no space left ({error}); {_need(layout_of(out, len(table), contract))}; "
                f"free some and run again (what is done is kept), or name another disk with data.store=DIR"
            ) from error
        raise StoreError(f"store {out}: {error}; mend this and run again (what is done is kept)") from error


def _fill_folder(
    building: Path,
    out: Path,
    table: pd.DataFrame,
    contract: InputContract,
    identity: dict[str, Any],
    read: Read,
    workers: int,
    dropped: pd.DataFrame | None,
    on_progress: Progress | None,
) -> None:
    """Write the four files of the store, contract.json last."""
    layout = layout_of(building, len(table), contract)
    _refuse_small_disk(layout, out)
    allocate(layout)
    rows = fill(layout, read, table["path"].tolist(), building / _JOURNAL, workers, on_progress)
    kept = [row.place for row in rows if not row.damage]
    keys = scan_keys(table)
    if not kept:
        shutil.rmtree(building)  # most often a folder that was not mounted: nothing here is worth going on with
        raise StoreError(f"store {out}: none of {len(rows)} scans could be read; first {keys[0]}: {rows[0].damage}")
    damaged = {keys[row.place]: row.damage for row in rows if row.damage}
    if damaged:
        _log.warning("store %s: %d of %d scans are damaged, see its %s", out, len(damaged), len(rows), DROPPED)
    compact(layout, kept)
    final = table.iloc[kept].reset_index(drop=True)
    final["digest"] = pd.array([rows[index].digest for index in kept], dtype="string")
    write_table(final, building / TABLE)
    write_tsv(_all_dropped(table, damaged, dropped), building / DROPPED)
    _write_json(building / CONTRACT, {**identity, "damaged": damaged, "checksum": checksum_of(final)})


def _enter(out: Path, identity: dict[str, Any]) -> Path:
    """The folder to build in, empty or holding an unfinished build of the same store.

    An unfinished build of something else is refused, never deleted: it may hold hours of work.
    """
    building = out.with_name(out.name + ".building")
    for name in (CONTRACT, _IDENTITY):
        if (building / name).is_file():
            differs = _differences(json.loads((building / name).read_text(encoding="utf-8")), identity)
            if differs:
                raise StoreError(
                    f"store {out}: the unfinished build {building} is of something else: {differs}; "
                    f"delete that folder, or name another store with data.store=DIR"
                )
            return building
    shutil.rmtree(building, ignore_errors=True)  # killed before its first sample
    building.mkdir()
    _write_json(building / _IDENTITY, identity)
    return building


def _move_in(building: Path, out: Path) -> None:
    for name in (_JOURNAL, _IDENTITY):
        (building / name).unlink(missing_ok=True)
    _flush_folder(building)
    os.rename(building, out)
    _flush_folder(out.parent)


def _reuse(
    out: Path, table: pd.DataFrame, identity: dict[str, Any], dropped: pd.DataFrame | None, *, refresh: bool
) -> ArrayStore | None:
    """The store at `out` with this table; None when its files need a refresh that was not asked for."""
    store = ArrayStore.open(out)
    differs = _differences(store.record, identity)
    if differs:
        raise StoreError(
            f"store {out} is of something else: {differs}; name another folder with data.store=DIR, or delete this one"
        )
    damaged = store.record["damaged"]
    current = table[~scan_keys(table).isin(damaged)].reset_index(drop=True)
    current["digest"] = store.table["digest"]
    listed = store.dropped if dropped is None else _all_dropped(table, damaged, dropped)
    if current.equals(store.table) and listed.equals(store.dropped):
        return store
    if not refresh:
        return None
    write_table(current, out / TABLE)
    write_tsv(listed, out / DROPPED)
    return ArrayStore.open(out)


def _all_dropped(table: pd.DataFrame, damaged: dict[str, str], dropped: pd.DataFrame | None) -> pd.DataFrame:
    reasons = "damaged: " + scan_keys(table).map(damaged).astype("string")
    rows = table.assign(reason=reasons)[reasons.notna()]
    return finish_dropped(rows) if dropped is None else finish_dropped(rows, dropped)


def _identity(table: pd.DataFrame, contract: InputContract) -> dict[str, Any]:
    """What a store is of: the part of contract.json that is known before anything is read."""
    scans = [scan_keys(table).tolist(), table["path"].tolist(), str(contract.dtype), SCHEMA]
    return {
        "schema": SCHEMA,
        "contract": contract.to_dict(),
        "scans": len(table),  # asked for: with the damaged ones
        "fingerprint": digest_of(json.dumps(scans).encode()),
    }


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What distinguishes two identities, in words; empty when they are of the same store."""
    expected, present = (InputContract.from_dict(identity["contract"]) for identity in (wanted, found))
    phrases = expected.differences(present)
    if found["scans"] != wanted["scans"]:
        phrases.append(f"expected {wanted['scans']} scans, found {found['scans']}")
    elif found["fingerprint"] != wanted["fingerprint"]:
        phrases.append(f"its {found['scans']} scans have other keys, files or another order")
    return "; ".join(phrases)


def _refuse_small_disk(layout: Layout, out: Path) -> None:
    have = layout.path.stat().st_blocks * 512 if layout.path.exists() else 0  # claimed by an earlier start
    free = shutil.disk_usage(layout.path.parent).free
    if layout.nbytes - have + _SLACK_BYTES > free:
        raise StoreError(
            f"store {out}: {_need(layout)}, {free / 2**30:.2f} GiB are free; name another disk with data.store=DIR"
        )


def _need(layout: Layout) -> str:
    return f"{layout.n} samples of {layout.shape} {layout.dtype} need {layout.nbytes / 2**30:.2f} GiB"


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold `<out>.lock`; the kernel releases it with the process, so a lock is never stale."""
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


def _is_taken(out: Path) -> bool:
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
