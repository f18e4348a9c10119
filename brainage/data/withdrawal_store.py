"""An array store rewritten without some people: beside its place, then renamed, see `brainage.data.withdrawal`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from brainage.data.array_store import (
    CONTRACT,
    DROPPED,
    MASK,
    TABLE,
    ArrayStore,
    checksum_of,
    layout_of,
)
from brainage.data.claim import only_process
from brainage.data.filling import Progress
from brainage.data.order import store_identity
from brainage.data.stamps import STAMPS
from brainage.data.table import KEY, finish_dropped, person_keys, read_tsv, scan_keys, write_table, write_tsv
from brainage.errors import DataError, StoreError
from brainage.runtime.files import write_json_atomic

_SLACK_BYTES = 2**20  # for the files beside the arrays
_COMPUTED = ("sheet", "kept", "kept.sheet")  # folders beside a store: thumbnails, quality, lists of scans left out


class Rewritten(NamedTuple):
    removed: int  # samples
    deleted: list[Path]  # folders beside it that were computed with them


class _Parts(NamedTuple):
    """What the smaller store consists of."""

    rows: list[int]  # of the arrays, that stay
    table: pd.DataFrame
    dropped: pd.DataFrame
    asked: pd.DataFrame  # KEY and path of every scan it is of, the damaged ones too
    record: dict[str, Any]


def rewrite_store(out: Path, gone: set[str], reason: str, on_progress: Progress | None = None) -> Rewritten | None:
    """Replace the store at `out` by one without the people `gone` (as `person_keys` writes them).

    Their scans are listed in `dropped.tsv` with `reason`. What was computed of the samples (quality, thumbnails) is
    deleted, since it shows them and can be computed again. None where nothing had to change. Killed at any point, the
    next call ends what was begun. Raises StoreError, see `withdraw`.
    """
    try:
        with only_process(out):
            _end_interrupted(out)
            store = ArrayStore.open(out)
            if "shard" in store.record:
                raise StoreError(f"store {out}: one part of several; merge them first, or delete the parts")
            parts = _without(store, gone, reason)
            if len(parts.asked) == store.record["scans"]:
                if parts.dropped.equals(store.dropped):
                    return None
                deleted = _delete_computed(out)
                write_tsv(parts.dropped, out / DROPPED)
                return Rewritten(0, deleted)
            _write(store, parts, _beside(out, "withdrawing"), on_progress)
            deleted = _delete_computed(out)  # before the swap: a killed call is followed by one that still knows why
            _swap(out)
            return Rewritten(len(store) - len(parts.rows), deleted)
    except OSError as error:
        raise StoreError(f"store {out}: {error}; mend this and call again, the store is still whole") from error


def _without(store: ArrayStore, gone: set[str], reason: str) -> _Parts:
    stays = ~person_keys(store.table).isin(gone).to_numpy(dtype=bool)
    if not stays.any():
        raise StoreError(f"store {store.path}: everybody in it is withdrawn; delete the folder {store.path}")
    theirs = person_keys(store.dropped).isin(gone)
    listed = pd.concat([store.table[~stays], store.dropped[theirs]]).assign(reason=reason)
    dropped = finish_dropped(store.dropped[~theirs], listed.drop_duplicates([*KEY, "path"]))
    asked = _asked(store)
    asked = asked[~person_keys(asked).isin(gone)]
    damaged = {key: words for key, words in store.record["damaged"].items() if key in set(scan_keys(asked))}
    table = store.table[stays].reset_index(drop=True)
    changed = {"damaged": damaged, "checksum": checksum_of(table)}
    record = {**store.record, **store_identity(asked, store.contract), **changed}
    return _Parts(stays.nonzero()[0].tolist(), table, dropped, asked, record)


def _asked(store: ArrayStore) -> pd.DataFrame:
    """KEY and path of every scan that the store was asked for, in that order, which its fingerprint confirms."""
    damaged = store.dropped[scan_keys(store.dropped).isin(store.record["damaged"])]
    damaged = damaged[damaged["reason"].str.startswith("damaged: ")]
    every = pd.concat([store.table[[*KEY, "path"]], damaged[[*KEY, "path"]]], ignore_index=True)
    by_key = every.sort_values(KEY, na_position="first", kind="stable")
    stamps = _stamps(store.path)
    by_stamp = every.iloc[0:0]
    if stamps is not None:
        place = {path: row for row, path in enumerate(stamps["path"])}
        known = every[every["path"].isin(place)]
        by_stamp = known.iloc[known["path"].map(place).argsort(kind="stable")]
    for asked in (by_stamp, by_key, every):
        if store_identity(asked, store.contract)["fingerprint"] == store.record["fingerprint"]:
            return asked
    raise StoreError(
        f"store {store.path}: its files do not say in which order its scans were asked for; delete the folder and "
        "prepare it again without the withdrawn people"
    )


def _write(store: ArrayStore, parts: _Parts, new: Path, on_progress: Progress | None) -> None:
    """Write the smaller store into the folder `new`, contract.json last."""
    layout = layout_of(new, len(parts.rows), store.contract)
    source = layout_of(store.path, len(store), store.contract)
    free = shutil.disk_usage(new.parent).free
    if layout.nbytes + _SLACK_BYTES > free:
        raise StoreError(
            f"store {store.path}: a copy without the withdrawn people needs {layout.nbytes / 2**30:.2f} GiB beside it, "
            f"{free / 2**30:.2f} GiB are free; free some, or delete the store and prepare it again"
        )
    new.mkdir()
    with open(source.path, "rb") as whole, open(layout.path, "wb") as file:
        file.write(layout.header)
        for done, row in enumerate(parts.rows, start=1):
            whole.seek(source.offset(row))
            file.write(whole.read(source.row_bytes))
            if on_progress:
                on_progress(done, len(parts.rows))
        file.flush()
        os.fsync(file.fileno())
    stamps = _stamps(store.path)
    if stamps is not None:
        write_tsv(stamps[stamps["path"].isin(parts.asked["path"])], new / STAMPS)
    if (store.path / MASK).is_file():
        shutil.copy2(store.path / MASK, new / MASK)
    write_table(parts.table, new / TABLE)
    write_tsv(parts.dropped, new / DROPPED)
    write_json_atomic(new / CONTRACT, parts.record)
    ArrayStore.open(new)  # refuses what does not fit together, while the old one is still in its place


def _delete_computed(out: Path) -> list[Path]:
    found = [folder for folder in (_beside(out, what) for what in _COMPUTED) if folder.is_dir()]
    for folder in found:
        shutil.rmtree(folder)
    return found


def _swap(out: Path) -> None:
    new, old = _beside(out, "withdrawing"), _beside(out, "withdrawn")
    _flush(new)
    os.rename(out, old)
    os.rename(new, out)
    _flush(out.parent)
    shutil.rmtree(old)


def _end_interrupted(out: Path) -> None:
    """What a killed call left: a whole copy whose place is free moves in; everything else of it is deleted."""
    new, old = _beside(out, "withdrawing"), _beside(out, "withdrawn")
    if not out.exists() and (new / CONTRACT).is_file():
        os.rename(new, out)
    if new.exists():
        shutil.rmtree(new)
    if out.exists() and old.exists():
        shutil.rmtree(old)


def _stamps(folder: Path) -> pd.DataFrame | None:
    try:
        stamps = read_tsv(folder / STAMPS)
    except DataError:  # absent or torn: `prepare_store` looks at the files anew
        return None
    return stamps if {"path", "stamp"} <= set(stamps.columns) else None


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f"{out.name}.{what}")


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
