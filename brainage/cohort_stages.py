"""The stages around a cohort: its split, its store in parts, its data sheet, who withdrew."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from brainage.data.source import ScanSource
from brainage.errors import ConfigError
from brainage.runtime import console, warn
from brainage.stages import progress_bar


def split_stage(data: Any, out: Path) -> None:
    """Write split.tsv, or every fold with an index, to a folder."""
    from brainage.data.folds import write_folds
    from brainage.data.splits import write_split

    if data.config.folds:
        index = write_folds(data.planned(), out, data.folds())
        console().print(index.to_string(index=False), markup=False)
    else:
        write_split(data.split, out / "split.tsv")
        counts = data.split["split"].value_counts()
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        console().print(f"{out / 'split.tsv'}: {said}; hash {data.split_hash}", soft_wrap=True)


def part_of(text: str) -> tuple[int, int]:
    """
    >>> part_of("2/8")
    (2, 8)
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--shard {text}: expected i/n with i from 1 to n, such as 2/8")
    return int(found[1]), int(found[2])


def shard_stage(data: Any, part: tuple[int, int]) -> None:
    """Prepare part i of n and say which parts are missing."""
    with progress_bar(f"prepare {part[0]}/{part[1]}", len(data.planned())) as advance:
        states = data.prepare_shard(part, advance)
    for path, state in zip(data.member_paths(), states, strict=True):
        missing = ", ".join(map(str, state.missing)) or "none; `brainage prepare` without --shard merges them"
        console().print(f"store {path}: part {part[0]} of {part[1]} done; missing: {missing}", soft_wrap=True)


def inspect_stage(data: ScanSource) -> Path:
    """Quality of every scan, thumbnails of the flagged ones, and a data sheet, in `<store>.sheet`."""
    from brainage.imaging.quality import unjudged, write_quality
    from brainage.reporting.data_sheet import write_data_sheet
    from brainage.reporting.thumbnails import write_thumbnails

    store = data.store
    with progress_bar("quality", 2 * len(store)) as advance:
        quality = write_quality(store, on_progress=advance)
    folder = store.path.with_name(store.path.name + ".sheet")
    page = write_data_sheet(folder, data.table, data.dropped, quality)
    pictures = write_thumbnails(store, quality, folder)
    for line in unjudged(quality):
        warn(line)
    flagged = quality["qc_flags"].notna()
    console().print(f"{int(flagged.sum())} of {len(quality)} scans flagged; none is left out but by data.exclude")
    for flag, count in quality.loc[flagged, "qc_flags"].str.split("[;, ]+").explode().value_counts().items():
        console().print(f"  {flag}: {count}")
    if pictures:
        console().print(f"thumbnails: {', '.join(str(path) for path in pictures)}", soft_wrap=True)
    console().print(f"data sheet: {page}", soft_wrap=True)
    return page


def withdraw_stage(lists: list[Path], cohort: str, stores: list[Path], runs: list[Path]) -> None:
    """Remove people from stores and run folders, and print what changed and what cannot be undone."""
    from brainage.data.withdrawal import withdraw, withdrawn_people

    if not stores and not runs:
        raise ConfigError("withdraw: expected --store DIR or --run DIR, where people are to be taken out")
    people = withdrawn_people(lists, cohort)
    with progress_bar("withdraw", 1) as advance:
        changes = withdraw(people, stores=stores, runs=runs, on_progress=advance)
    for change in changes:
        console().print(f"{change.path}: {change.note}", soft_wrap=True, markup=False)
    if not changes:
        console().print(f"nothing held any of the {len(people)} people on these lists")
