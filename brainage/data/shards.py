"""A store prepared by several jobs at once, each its own contiguous block of scans, and the merge of what they made.

Each shard i of n is a small store of its own, `<store>.shards/<i>-of-<n>`, with its own journal and lock: it is resumed
after `kill -9`, checked and refused like any other, and no two nodes ever write one file. One file for all would need
locks between nodes or blocks that no two shards share (a network disk writes whole pages, and a row of a .npy file
ends inside one); part files need neither, at the price of twice the disk until they are merged. Blocks are contiguous,
so that the merge is one sequential copy: it opens no source file, compares every row with the digest that the shard
noted, and gives the very bytes of a build in one go. The parts are deleted when the merged store is whole.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainage.data.array_store import ARRAYS, CONTRACT, ArrayStore
from brainage.data.filling import Layout, Progress, Row, digest_of, write_at
from brainage.errors import StoreError

_PART = re.compile(r"(\d+)-of-(\d+)(\.building)?")


def block_of(shard: tuple[int, int], scans: int) -> slice:
    """Rows of shard i of n, i from 1; blocks differ by one scan at most. StoreError on an i or n that cannot be.

    >>> [block_of((i, 3), 10) for i in (1, 2, 3)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """
    i, n = shard
    if not 1 <= i <= n:
        raise StoreError(f"shard {i}/{n}: expected i/n with i from 1 to n, such as 2/8")
    if n > scans:
        raise StoreError(f"shard {i}/{n}: {scans} scans make at most {scans} shards")
    return slice((i - 1) * scans // n, i * scans // n)


def parts_folder(out: Path) -> Path:
    return out.with_name(out.name + ".shards")


def part_path(out: Path, shard: tuple[int, int]) -> Path:
    return parts_folder(out) / "{}-of-{}".format(*shard)


@dataclass(frozen=True)
class ShardState:
    """How far the shards of a store are; `missing` are begun or not yet begun."""

    n: int
    done: list[int]
    missing: list[int]


def shard_state(out: str | Path) -> ShardState | None:
    """None where no shard was begun, which is so again after the merge; StoreError on two divisions at once."""
    folder = parts_folder(Path(out))
    names = [_PART.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    found = [(int(name[1]), int(name[2])) for name in names if name]
    if not found:
        return None
    divisions = sorted({n for _, n in found})
    if len(divisions) > 1:
        raise StoreError(f"{folder}: holds shards of {' and of '.join(map(str, divisions))}; delete those of one")
    n = divisions[0]
    done = [i for i in range(1, n + 1) if (part_path(Path(out), (i, n)) / CONTRACT).is_file()]
    return ShardState(n, done, [i for i in range(1, n + 1) if i not in done])


def refuse_other_division(out: Path, n: int) -> None:
    """StoreError when this store was begun in another number of shards."""
    state = shard_state(out)
    if state and state.n != n:
        raise StoreError(
            f"store {out}: was begun in {state.n} shards, found one of {n}; go on with i/{state.n}, "
            f"or delete the folder {parts_folder(out)}"
        )


def refuse_missing(out: Path, state: ShardState) -> None:
    """StoreError that lists the shards which are not done."""
    if state.missing:
        named = ", ".join(f"{i}/{state.n}" for i in state.missing)
        raise StoreError(
            f"store {out}: {len(state.done)} of {state.n} shards are done; missing: {named}; prepare them with "
            f"--shard {state.missing[0]}/{state.n} and so on, or delete {parts_folder(out)} to begin anew in one go"
        )


def claimed_bytes(out: Path) -> int:
    """Disk that the shards hold so far, with what they reserved."""
    files = parts_folder(out).glob(f"*/{ARRAYS}")
    return sum(path.stat().st_blocks * 512 for path in files)


def merge_parts(parts: list[ArrayStore], keys: list[str], layout: Layout, on_progress: Progress | None) -> list[Row]:
    """Copy the rows of the parts, one after the other, into the file of `layout`; what became of each scan of `keys`.

    Damaged scans leave no gap. StoreError naming the scan and the part where bytes are not the ones that were stored.
    """
    rows: list[Row] = []
    with open(layout.path, "r+b") as target:
        kept = 0
        for part in parts:
            damaged = part.record["damaged"]
            stored = _rows_of(part)
            with open(part.path / ARRAYS, "rb") as source:
                for key in keys[len(rows) : len(rows) + part.record["scans"]]:
                    if key in damaged:
                        rows.append(Row(len(rows), "", damaged[key]))
                        continue
                    at, row = next(stored)
                    data = os.pread(source.fileno(), layout.row_bytes, layout.offset(at))
                    if digest_of(data) != row.digest:
                        raise StoreError(
                            f"{part.path}: the bytes of scan {key} are not the ones that were stored; "
                            f"delete that folder and prepare its shard again"
                        )
                    write_at(target.fileno(), memoryview(data), layout.offset(kept))
                    kept += 1
                    rows.append(row._replace(place=len(rows)))
                    if on_progress:
                        on_progress(len(rows), layout.n)
    return rows


def _rows_of(part: ArrayStore) -> Any:
    outside = part.table["outside_mask"] if "outside_mask" in part.table else [0.0] * len(part)
    pairs = zip(part.table["digest"], outside, strict=True)
    return ((at, Row(at, digest, "", float(share))) for at, (digest, share) in enumerate(pairs))


def remove_parts(out: Path) -> None:
    if parts_folder(out).is_dir():
        shutil.rmtree(parts_folder(out))
