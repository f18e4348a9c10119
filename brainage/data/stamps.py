"""Whether the files that a store was prepared from are still those files, without opening them.

A stamp is a short text that changes with a file, such as `size:mtime_ns`. `stamps.tsv` of a store holds one a scan,
damaged scans too, taken before anything was read: a file replaced meanwhile has another one at the next look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import pandas as pd

from brainage.data.array_store import ArrayStore
from brainage.data.files import read_tsv, write_tsv
from brainage.data.filling import Progress, Row
from brainage.data.table import scan_keys
from brainage.errors import DataError, StoreError

STAMPS = "stamps.tsv"
Stamp = Callable[[str], str]


class Sources:
    """The files behind the scans of a table, looked at once; without a `stamp` nothing ever counts as changed."""

    def __init__(self, table: pd.DataFrame, stamp: Stamp | None) -> None:
        self.table = table
        self.stamp = stamp

    @cached_property
    def stamps(self) -> list[str]:
        return [self.stamp(path) for path in self.table["path"]] if self.stamp else []

    def keep(self, folder: Path) -> None:
        """Write `stamps.tsv` of a store."""
        if self.stamp:
            write_tsv(pd.DataFrame({"path": self.table["path"], "stamp": self.stamps}), folder / STAMPS)

    def changed(self, folder: Path) -> list[int]:
        """Rows whose stamp is not the one that the store of a folder keeps; all where it keeps none."""
        if self.stamp is None:
            return []
        try:
            kept = read_tsv(folder / STAMPS)
            before = dict(zip(kept["path"], kept["stamp"], strict=True))
        except (DataError, KeyError):  # absent or torn: nothing is known, so look again
            before = {}
        wanted = zip(self.table["path"], self.stamps, strict=True)
        return [row for row, (path, stamp) in enumerate(wanted) if before.get(path) != stamp]


def join_stamps(folders: Iterable[Path], out: Path) -> None:
    """`stamps.tsv` of a merged store, as its parts took them; none where a part has none."""
    files = [folder / STAMPS for folder in folders]
    if all(file.is_file() for file in files):
        write_tsv(pd.concat([read_tsv(file) for file in files], ignore_index=True), out / STAMPS)
    else:
        (out / STAMPS).unlink(missing_ok=True)


def refuse_replaced(
    table: pd.DataFrame, store: ArrayStore, rows: Iterable[Row], total: int, on_progress: Progress | None
) -> None:
    """Compare `total` rows of `table`, just read again, with the store that was prepared from it.

    StoreError at the first that holds other values, cannot be read any more, or was damaged and can be read now.
    """
    keys = scan_keys(table)
    digests = dict(zip(scan_keys(store.table), store.table["digest"], strict=True))
    for done, row in enumerate(rows, start=1):
        stored = digests.get(keys[row.place], "")
        if row.digest != stored:
            what = "holds other values now" if stored else "was damaged then and is not now"
            if row.damage:
                what = f"cannot be read any more ({row.damage})"
            raise StoreError(
                f"store {store.path}: the files of {total} of its {len(keys)} scans changed after it was prepared; "
                f"{table['path'].iloc[row.place]} of scan {keys[row.place]} {what}; delete the folder {store.path} and "
                "prepare again, or name another one with data.store=DIR"
            )
        if on_progress:
            on_progress(done, total)
