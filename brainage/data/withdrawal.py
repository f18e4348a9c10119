"""People who withdrew their consent: their samples and rows leave the stores and run folders that hold them.

A reader leaves them out of every table that it gives; this is for what was written before. Each file is replaced whole
or not at all, so that a killed process is followed by the same call, and a second call changes nothing. A store is
written anew beside its place, since only then are the bytes gone; afterwards it is the store that the cohort without
these people would have given, to the byte, and `prepare_store` opens it without reading a scan.

What remains of a withdrawn person is a line in `dropped.tsv` of a store: id, locator, "withdrawn".
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from brainage.data.filling import Progress
from brainage.data.overlap import OTHER
from brainage.data.table import PERSON, person_keys, write_atomically
from brainage.data.withdrawal_store import rewrite_store
from brainage.errors import DataError
from brainage.runtime.files import write_json_atomic

WITHDRAWN = "withdrawn"  # the reason in `dropped`
LOOKED_AT = "overlap.json"  # what makes a folder the one of a mixture, see `data_modules.overlaps`
COMPUTED = "deleted: was computed with them, and can be written again without (brainage prepare, brainage inspect)"
_HEADERS = ("eid", "f.eid", "n_eid", "id", "participant_id", "subject_id")
_NAMING = r"^same (?:person|samples) as (.*)$"  # a reason that names another person
_SEPARATORS = {".tsv": "\t", ".csv": ","}


class Change(NamedTuple):
    path: Path
    removed: int  # rows
    note: str  # what was done, or what cannot be


def withdrawn_people(lists: Iterable[str | Path], cohort: str) -> pd.DataFrame:
    """cohort and participant_id of everybody on withdrawal lists, each person once, sorted.

    A list has one id a line (a first line that names the column and further columns are passed over). Raises DataError
    naming the file and line: a list that cannot be read must not be taken for an empty one.
    """
    found: set[str] = set()
    for file in map(Path, lists):
        if not file.is_file():
            raise DataError(f"{file}: withdrawal list not found")
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{file}: expected a withdrawal list in UTF-8, found other bytes ({error.reason})"
            ) from error
        cells = [
            (number, re.split("[,;\t]", line)[0].strip().strip("'\"")) for number, line in enumerate(lines, start=1)
        ]
        cells = [(number, cell) for number, cell in cells if cell]
        if cells and cells[0][1].lower() in _HEADERS:
            del cells[0]
        elif not cells:
            raise DataError(f"{file}: is empty; expected one id a line, download the withdrawal list again")
        for number, cell in cells:
            if re.search(r"[\s/]", cell):
                raise DataError(f"{file}: line {number}: expected one id, found {cell!r}")
            found.add(cell)
    people = pd.DataFrame({"cohort": cohort, "participant_id": sorted(found)})
    return people.astype("string")


def withdraw(
    people: pd.DataFrame,
    *,
    stores: Iterable[str | Path] = (),
    runs: Iterable[str | Path] = (),
    on_progress: Progress | None = None,
) -> list[Change]:
    """Remove people (columns cohort, participant_id) from array stores and from the tables of run folders.

    A store is rewritten without their samples, which needs room for a second copy meanwhile; `on_progress(done, total)`
    counts its samples. What was computed of it (`<store>.sheet`, `<store>.kept`) is deleted. The folder of a mixture,
    which holds no samples, loses their rows as a run folder does: the stores of its members are to be named too. Of a
    run folder every parquet, TSV and CSV file with the columns cohort and participant_id loses their rows: table,
    split, predictions, embeddings. Gives one Change a file, and one for each thing that cannot be undone; an empty list
    where nothing is left of them.

    Raises StoreError when a store is absent, torn, being prepared, a part of one, or would hold nobody; DataError when
    a run folder is absent, being trained, or has a torn table. What was done until then is kept: call again.
    """
    gone = set(person_keys(people[PERSON].astype("string")))
    changes: list[Change] = []
    for store in map(Path, stores):
        if (store / LOOKED_AT).is_file():
            changes += _clean_mixture(store, gone)
            continue
        done = rewrite_store(store, gone, WITHDRAWN, on_progress)
        if done is not None:
            changes.append(Change(store, done.removed, f"store rewritten without {done.removed} samples"))
            changes += [Change(folder, 0, COMPUTED) for folder in done.deleted]
        for unfinished in (store.with_name(store.name + ending) for ending in (".building", ".shards")):
            if unfinished.exists():
                note = "an unfinished build that may hold samples of them, and that is of no use now: delete it"
                changes.append(Change(unfinished, 0, note))
    for run in map(Path, runs):
        changes += _clean_run(run, gone)
    return changes


def _clean_run(folder: Path, gone: set[str]) -> list[Change]:
    if not folder.is_dir():
        raise DataError(f"run folder {folder}: not found")
    _refuse_running(folder)
    changes = _clean_tables(folder, gone)
    if not changes:
        return []
    finished = folder / "finished.json"
    if finished.is_file():  # so that the run is still known for what it is, see `pretraining.folder.read_finished`
        values = json.loads(finished.read_text(encoding="utf-8"))
        write_json_atomic(finished, {**values, "withdrawn": True})
    for path in sorted(folder.rglob("*.ckpt")):
        note = "cannot be undone: weights trained before the withdrawal may have seen them; train again to be rid of it"
        changes.append(Change(path, 0, note))
    for path in sorted(folder.rglob("report*.html")):
        changes.append(Change(path, 0, "was written with them: write it again with `brainage report`"))
    return changes


def _clean_mixture(folder: Path, gone: set[str]) -> list[Change]:
    """The tables of a mixture's folder, and the thumbnails beside it."""
    sheet = folder.with_name(folder.name + ".sheet")
    held = any(_rows_of(path, gone) for path in _tables_of(folder))
    deleted = []
    if held and sheet.is_dir():  # first: a killed call is followed by one that still knows why
        shutil.rmtree(sheet)
        deleted = [Change(sheet, 0, COMPUTED)]
    changes = [*_clean_tables(folder, gone), *deleted]
    if changes:
        note = "folder of a mixture: its samples are in the stores of its members; name those with --store as well"
        changes.append(Change(folder, 0, note))
    return changes


def _clean_tables(folder: Path, gone: set[str]) -> list[Change]:
    changes = []
    for path in _tables_of(folder):
        removed = _rows_of(path, gone, remove=True)
        if removed:
            changes.append(Change(path, removed, f"{removed} rows removed"))
    return changes


def _tables_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".parquet", *_SEPARATORS))


def _rows_of(path: Path, gone: set[str], *, remove: bool = False) -> int:
    """Rows of a table that are theirs, removed if asked."""
    return (_clean_parquet if path.suffix == ".parquet" else _clean_text)(path, gone, remove)


def _refuse_running(folder: Path) -> None:
    lock = folder / "run.lock"
    if not lock.is_file():
        return
    with open(lock, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"run folder {folder}: another process is training it; stop it, then withdraw") from None


def _clean_parquet(path: Path, gone: set[str], remove: bool) -> int:
    try:
        if not set(PERSON) <= set(pq.read_schema(path).names):
            return 0
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as a table ({' '.join(str(error).split())[:160]})") from error
    names = [name for name in (*PERSON, *OTHER, "reason") if name in table.column_names]
    kept = _kept(table.select(names).to_pandas(), gone)
    if remove and not kept.all():
        left = table.filter(pa.array(kept))
        write_atomically(path, lambda temporary: pq.write_table(left, temporary))
    return int((~kept).sum())


def _clean_text(path: Path, gone: set[str], remove: bool) -> int:
    separator = _SEPARATORS[path.suffix]
    with open(path, encoding="utf-8", errors="replace") as file:
        if not set(PERSON) <= set(file.readline().strip().split(separator)):
            return 0
    try:
        frame = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not readable as a table ({' '.join(str(error).split())[:160]})") from error
    kept = _kept(frame, gone)
    if remove and not kept.all():
        left = frame[kept]
        write_atomically(
            path, lambda temporary: left.to_csv(temporary, sep=separator, index=False, lineterminator="\n")
        )
    return int((~kept).sum())


def _kept(frame: pd.DataFrame, gone: set[str]) -> np.ndarray:
    """Rows that may stay: everybody else's, and the lines that say who was left out for withdrawing."""
    theirs = person_keys(frame).isin(gone)
    if set(OTHER) <= set(frame.columns):  # pairs of people
        theirs |= person_keys(frame[OTHER].set_axis(PERSON, axis=1)).isin(gone)
    if "reason" in frame:
        theirs &= frame["reason"] != WITHDRAWN
        theirs |= frame["reason"].astype(str).str.extract(_NAMING)[0].isin(gone)
    return ~theirs.to_numpy(dtype=bool)
