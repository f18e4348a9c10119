"""The battery every cohort must pass before it is trained on: `assert_cohort(MyCohort(root, "brain"), tmp_path)`.

Checks open a handful of scans, spread over the table, so they take seconds on a cohort of any size. What they cannot
see: left and right swapped (the MNI template is symmetric), and ages that are plausible but wrong.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from unittest.mock import patch

import nibabel as nib
import numpy as np

from brainage.data.store import prepare_store
from brainage.data.table import DROPPED_COLUMNS, OLDEST_YEARS, PERSON, CohortTable, person_keys, scan_keys, validate
from brainage.errors import BrainageError
from brainage.imaging.anatomy import axis_scores, off_centre_mm
from data_modules.reader import CohortReader

OFF_CENTRE_MM = 20.0  # distance of the centre of mass from where the contract's space puts it
PUBLISHED_SPLITS = ("train", "test_internal", "test_external")


class Check(NamedTuple):
    name: str
    passed: bool
    detail: str  # what was seen, or what is wrong and where


class _Cohort(NamedTuple):
    """What the checks look at: the whole table, and the samples of a few of its rows."""

    reader: CohortReader
    table: CohortTable
    opened: list[str]  # what `table` and `official_split` opened
    rows: np.ndarray  # of the scans that are read
    scratch: Path
    samples: dict[str, np.ndarray]  # by locator, filled as checks ask

    def paths(self) -> list[str]:
        return self.table.table["path"].iloc[self.rows].tolist()

    def sample(self, path: str) -> np.ndarray:
        if path not in self.samples:
            self.samples[path] = self.reader.read(path)
        return self.samples[path]


class _WrongError(Exception):
    """A check that failed, with what to mend."""


def check_cohort(reader: CohortReader, scratch: str | Path, *, scans: int = 6) -> list[Check]:
    """Run every check on `reader`; `scratch` is an empty folder for a store of at most `scans` scans.

    Never raises for what is wrong with the cohort: see `Check.passed`.
    """
    try:
        with _watched() as opened:
            table = reader.table()
            reader.official_split()
    except Exception as error:
        failed = Check("table", False, _words(error))
        return [failed, *(Check(name, False, "not run: there is no table") for name in CHECKS)]
    n = len(table.table)
    rows = np.unique(np.linspace(0, n - 1, min(scans, n)).round().astype(int))
    cohort = _Cohort(reader, table, opened, rows, Path(scratch), {})
    first = Check(
        "table", True, f"{n} scans of {person_keys(table.table).nunique()} people, {len(table.dropped)} left out"
    )
    return [first, *(_run(name, check, cohort) for name, check in CHECKS.items())]


def assert_cohort(reader: CohortReader, scratch: str | Path, *, scans: int = 6) -> None:
    """Raise AssertionError with the whole list unless every check of `check_cohort` passes."""
    checks = check_cohort(reader, scratch, scans=scans)
    if not all(check.passed for check in checks):
        raise AssertionError(f"cohort {reader.name}, {reader.modality}:\n{format_checks(checks)}")


def format_checks(checks: list[Check]) -> str:
    """One line a check.

    >>> print(format_checks([Check("table", True, "3 scans"), Check("ages", False, "oldest is 900")]))
    ok    table  3 scans
    WRONG ages   oldest is 900
    """
    width = max(len(check.name) for check in checks)
    return "\n".join(f"{'ok   ' if c.passed else 'WRONG'} {c.name:<{width}}  {c.detail}" for c in checks)


def _lazy(cohort: _Cohort) -> str:
    if cohort.opened:
        raise _WrongError(f"table() or official_split() opened {len(cohort.opened)} arrays, first {cohort.opened[0]}")
    return "the table opens no array"


def _columns(cohort: _Cohort) -> str:
    table = cohort.table.table
    validate(table, f"table of {cohort.reader.name}")
    for key, path in zip(scan_keys(table), table["path"], strict=True):
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise _WrongError(f"scan {key}: path {path!r}: expected a locator inside the cohort's root")
    filled = ", ".join(name for name in table.columns if table[name].notna().all())
    return f"complete columns: {filled}"


def _unique(cohort: _Cohort) -> str:
    keys = scan_keys(cohort.table.table)
    for key in keys[keys.duplicated()]:
        raise _WrongError(f"scan {key} has more than one row")
    paths = cohort.table.table["path"]
    for path in paths[paths.duplicated()]:
        raise _WrongError(f"{path} belongs to scans {' and '.join(keys[paths == path])}")
    return f"{len(keys)} keys, {paths.nunique()} locators"


def _ages(cohort: _Cohort) -> str:
    years = cohort.table.table["age_years"]
    if not ((years > 0) & (years <= OLDEST_YEARS)).all():
        raise _WrongError(f"age_years from {years.min():g} to {years.max():g}: expected years; months or days?")
    refused = cohort.table.dropped["reason"].str.contains("age_years .* is outside", regex=True).sum()
    if refused > len(years):
        raise _WrongError(f"{refused} scans left out for their age, {len(years)} kept: are the ages months or days?")
    return f"{years.min():.1f} to {years.max():.1f} years, median {years.median():.1f}"


def _left_out(cohort: _Cohort) -> str:
    dropped = cohort.table.dropped
    if list(dropped.columns) != DROPPED_COLUMNS:
        raise _WrongError(f"dropped rows: expected columns {DROPPED_COLUMNS}, found {list(dropped.columns)}")
    silent = dropped["reason"].isna() | (dropped["reason"].str.strip() == "")
    for key in scan_keys(dropped[silent]):
        raise _WrongError(f"dropped scan {key} has no reason")
    reasons = dropped["reason"].value_counts().head(3)
    found = "; ".join(f"{count} x {reason}" for reason, count in reasons.items()) or "nobody"
    absent = cohort.reader.without_scan()
    return found + (f"; {len(absent)} people never scanned so" if absent else "")


def _split(cohort: _Cohort) -> str:
    split = cohort.reader.official_split()
    if split is None:
        return "none published"
    for name in split.loc[~split["split"].isin(PUBLISHED_SPLITS), "split"]:
        raise _WrongError(f"official split {name!r}: expected one of {', '.join(PUBLISHED_SPLITS)}")
    people = person_keys(split)
    for person in people[people.duplicated()]:
        raise _WrongError(f"person {person} is in the official split more than once")
    absent = set(person_keys(cohort.table.table)) - set(people)
    if absent:
        raise _WrongError(f"{len(absent)} people of the table are in no official split, first {min(absent)}")
    counts = cohort.table.table.merge(split, on=PERSON, suffixes=("_", ""))["split"].value_counts()
    return ", ".join(f"{name} {counts.get(name, 0)}" for name in PUBLISHED_SPLITS)


def _samples(cohort: _Cohort) -> str:
    contract = cohort.reader.contract()
    seen: dict[str, str] = {}
    for path in cohort.paths():
        sample = cohort.sample(path)
        if sample.dtype != np.float32 or sample.shape != contract.shape:
            raise _WrongError(f"{path}: expected float32 {contract.shape}, found {sample.dtype} {sample.shape}")
        if not np.isfinite(sample).all() or np.ptp(sample) == 0:
            raise _WrongError(f"{path}: values are constant or not finite")
        digest = hashlib.blake2b(np.ascontiguousarray(sample).data).hexdigest()
        if digest in seen:
            raise _WrongError(f"{path} and {seen[digest]} hold the same values")
        seen[digest] = path
    return f"{len(seen)} scans of {contract.shape} read"


def _anatomy(cohort: _Cohort) -> str:
    contract = cohort.reader.contract()
    if contract.kind == "vector" or "head" in contract.modality:
        return "not applicable: needs brains or grey matter maps"
    margins = []
    for path in cohort.paths()[:3]:
        volume = cohort.sample(path)[0]
        scores = axis_scores(volume, contract.affine, contract.modality)
        best = max(scores, key=lambda name: scores[name])
        upright = max(scores["x y z"], scores["-x y z"])
        if best not in ("x y z", "-x y z"):
            raise _WrongError(
                f"{path}: axes read as RAS fit the MNI template better as {best!r} ({scores[best]:.2f}) than as they "
                f"are ({upright:.2f}): permuted or flipped on the way"
            )
        margins.append(upright - max(score for name, score in scores.items() if not name.endswith("x y z")))
        away_mm = off_centre_mm(volume, contract)
        if np.linalg.norm(away_mm) > OFF_CENTRE_MM:
            raise _WrongError(
                f"{path}: centre of mass is {away_mm.round().tolist()} mm from where {contract.space} has it: is the "
                "origin of the contract right?"
            )
    return f"upright by a margin of {min(margins):.2f} in correlation; sides cannot be checked"


def _store(cohort: _Cohort) -> str:
    store = _prepared(cohort)
    if len(store) != len(cohort.rows):
        raise _WrongError(
            f"{len(cohort.rows) - len(store)} of {len(cohort.rows)} scans not stored, see {store.path}/dropped.tsv"
        )
    for index, path in enumerate(store.table["path"]):
        source = cohort.sample(path).astype(store.contract.dtype)
        if not np.array_equal(store.read([index])[0], source):
            raise _WrongError(f"{path}: the stored values differ from what read() gives in {source.dtype}")
    return f"{len(store)} scans equal to the last bit of {store.contract.dtype}"


def _again(cohort: _Cohort) -> str:
    before = _fingerprint(_prepared(cohort).path)
    after = _fingerprint(_prepared(cohort).path)
    changed = sorted(name for name in before | after if before.get(name) != after.get(name))
    for path in cohort.paths():
        if cohort.reader.stamp(path) == "absent":
            raise _WrongError(f"{path}: its stamp is 'absent', so that a replaced file would go unnoticed")
    if changed:
        raise _WrongError(f"preparing a second time changed {', '.join(changed)}")
    return "a second preparation changes no byte"


def _travels(cohort: _Cohort) -> str:
    copy: CohortReader = pickle.loads(pickle.dumps(cohort.reader))
    path = cohort.paths()[0]
    if not np.array_equal(copy.read(path), cohort.sample(path)):
        raise _WrongError(f"{path}: another process would read other values")
    return "the reader can be sent to other processes"


CHECKS: dict[str, Callable[[_Cohort], str]] = {
    "lazy": _lazy,
    "columns": _columns,
    "unique": _unique,
    "ages": _ages,
    "left out": _left_out,
    "split": _split,
    "samples": _samples,
    "anatomy": _anatomy,
    "store": _store,
    "again": _again,
    "travels": _travels,
}


def _run(name: str, check: Callable[[_Cohort], str], cohort: _Cohort) -> Check:
    try:
        return Check(name, True, check(cohort))
    except Exception as error:  # whatever a third party's reader raises is a finding, not a crash
        return Check(name, False, _words(error))


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, _WrongError | BrainageError) else f"{type(error).__name__}: {error}"


def _prepared(cohort: _Cohort) -> Any:
    table = cohort.table.table.iloc[cohort.rows]
    read = cohort.reader.read
    return prepare_store(
        table, cohort.reader.contract(), read, cohort.scratch / "store",
        workers=1, dropped=cohort.table.dropped, stamp=cohort.reader.stamp,
    )  # fmt: skip


def _fingerprint(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        file.name: (file.stat().st_mtime_ns, hashlib.blake2b(file.read_bytes()).hexdigest())
        for file in folder.iterdir()
    }


@contextmanager
def _watched() -> Iterator[list[str]]:
    """The files that numpy and nibabel are asked to open meanwhile."""
    opened: list[str] = []

    def watch(function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*words: Any, **options: Any) -> Any:
            opened.append(str(words[0]) if words else "?")
            return function(*words, **options)

        return watched

    with (
        patch("numpy.load", watch(np.load)),
        patch("numpy.memmap", watch(np.memmap)),
        patch("nibabel.load", watch(nib.load)),
    ):
        yield opened
