"""Files of a BIDS tree and what their names say: sub-01_ses-2_run-1_space-MNI152_desc-gm_T1w.nii.gz.

A name is [prefix]sub-<label>[_<entity>-<value>]..._<suffix><extension>; CAT12 puts a prefix (mwp1) before it. Folders
are read, never files, so that a tree on a network drive costs one listing a folder.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from brainage.errors import DataError

EXTENSIONS = (".nii.gz", ".nii", ".npy")
NO_SUBJECTS = ("sourcedata", "code", "stimuli", "phenotype")  # hold no derivative and no raw image of BIDS
COLUMNS = ["participant_id", "session_id", "run", "path", "pipeline", "datatype", "prefix", "suffix", "extension"]
Wanted = str | Collection[str] | None


class _Place(NamedTuple):
    """Where in a tree a folder lies, from the names of the folders above it."""

    subject: str = ""
    session: str = ""
    datatype: str = ""
    pipeline: str = ""


def list_files(
    root: str | Path,
    *,
    suffix: str,
    space: Wanted = None,
    desc: Wanted = None,
    extensions: Collection[str] = EXTENSIONS,
    datatype: str | None = None,
    entities: Mapping[str, Wanted] | None = None,
    pipeline: Wanted = None,
    prefix: Wanted = "",
) -> pd.DataFrame:
    """Files below `root` whose name has `suffix`, one row each, sorted by participant, session, run and path.

    `root` is a dataset (raw files, and derivatives/<pipeline>/, nested or not), one pipeline's folder, or any folder
    above sub-* ones. `space`, `desc`, `pipeline`, `prefix` and the values of `entities` (by the short names of file
    names: acq, rec, res ...) are each None: any; a text: this one, or with * a pattern (MNI152*); "": must be absent;
    several texts: one of them.
    `pipeline=""` is the raw data only, and then derivatives are not even walked. `datatype` (anat) skips the other
    folders of each session, which is much faster where there is functional data.

    Columns: participant_id (without sub-), session_id (without ses-, "" where there is none), run ("" likewise, else
    as written), path (relative, with /), pipeline ("" raw, "derivatives" straight below it), datatype, prefix, suffix,
    extension, and one column an entity that occurs, "" where a file has it not. All text.

    Raises DataError when `root` is no folder, or a file's subject or session is not that of its folder.
    """
    top = Path(root)
    if not top.is_dir():
        raise DataError(f"{top}: expected a folder of sub-* folders, found {'a file' if top.exists() else 'nothing'}")
    wanted = {"space": space, "desc": desc, "pipeline": pipeline, "prefix": prefix, **(entities or {})}
    longest_first = sorted(extensions, key=len, reverse=True)
    rows = []
    for folder, name, place in _walk(str(top), "", _Place(), datatype, raw_only=pipeline == ""):
        extension = next((end for end in longest_first if name.endswith(end)), None)
        if extension is None or not name.endswith(f"_{suffix}{extension}"):
            continue
        parts = parse_name(name, extension)
        if parts is None:
            continue
        row = {**parts, "pipeline": place.pipeline, "datatype": place.datatype, "path": f"{folder}{name}"}
        _check_place(row, place, top)
        if all(_is_wanted(row.get(key, ""), values) for key, values in wanted.items()):
            rows.append(row)
    return _as_table(rows)


def parse_name(name: str, extension: str) -> dict[str, str] | None:
    """Entities of a BIDS file name by their short names, with prefix, suffix and extension; None for another name.

    >>> parse_name("mwp1sub-01_ses-2_T1w.nii", ".nii")
    {'prefix': 'mwp1', 'suffix': 'T1w', 'extension': '.nii', 'sub': '01', 'ses': '2'}
    >>> parse_name("participants.tsv", ".tsv") is None
    True
    """
    stem = name.removesuffix(extension)
    prefix, mark, rest = stem.partition("sub-")
    if not mark:
        return None
    *pairs, suffix = ("sub-" + rest).split("_")
    parts = {"prefix": prefix, "suffix": suffix, "extension": extension}
    for pair in pairs:
        entity, dash, value = pair.partition("-")
        if not dash or not value or entity in parts:
            return None
        parts[entity] = value
    return parts if "sub" in parts else None


def _walk(
    top: str, folder: str, place: _Place, datatype: str | None, raw_only: bool
) -> Iterator[tuple[str, str, _Place]]:
    """(folder with its /, file name, place) of every file; hidden folders and links that lead upwards are passed by."""
    below = []
    with os.scandir(os.path.join(top, folder)) as listing:
        for entry in listing:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():  # a link of git-annex counts as a file, whether or not its content is there
                yield folder, entry.name, place
            elif not (entry.is_symlink() and _leads_up(entry.path)):
                below.append(entry.name)
    for name in sorted(below):
        inside = _enter(place, name, datatype, raw_only)
        if inside is not None:
            yield from _walk(top, f"{folder}{name}/", inside, datatype, raw_only)


def _enter(place: _Place, name: str, datatype: str | None, raw_only: bool) -> _Place | None:
    """The place of folder `name` inside `place`; None where nothing wanted can be in it."""
    if place.subject:
        if name.startswith("ses-") and not place.session and not place.datatype:
            return place._replace(session=name[4:])
        if place.datatype:
            return place
        return place._replace(datatype=name) if datatype in (None, name) else None
    if name.startswith("sub-"):
        return place._replace(subject=name[4:])
    if name == "derivatives":
        return None if raw_only else _Place(pipeline=name)
    if name in NO_SUBJECTS:
        return None
    if place.pipeline == "derivatives":
        return place._replace(pipeline=name)
    return place


def _leads_up(path: str) -> bool:
    real = os.path.realpath(path)
    return (os.path.realpath(os.path.dirname(path)) + os.sep).startswith(real.rstrip(os.sep) + os.sep)


def _check_place(row: dict[str, str], place: _Place, top: Path) -> None:
    """A session that only the folder names is taken from there; a name that contradicts its folder is refused."""
    if place.subject and row["sub"] != place.subject:
        raise DataError(
            f"{top / row['path']}: file of sub-{row['sub']} in the folder of sub-{place.subject}: whose is it?"
        )
    if place.session and row.setdefault("ses", place.session) != place.session:
        raise DataError(
            f"{top / row['path']}: file of ses-{row['ses']} in the folder of ses-{place.session}: which is it?"
        )


def _is_wanted(value: str, wanted: Wanted) -> bool:
    if wanted is None:
        return True
    return any(fnmatchcase(value, pattern) for pattern in ([wanted] if isinstance(wanted, str) else wanted))


def _as_table(rows: list[dict[str, str]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, dtype="string").rename(columns={"sub": "participant_id", "ses": "session_id"})
    table = table.reindex(columns=[*COLUMNS, *sorted(set(table.columns) - set(COLUMNS))]).astype("string").fillna("")
    return table.sort_values(["participant_id", "session_id", "run", "path"], ignore_index=True)
