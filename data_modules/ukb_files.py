"""Files below a UK Biobank folder, and which of them are lists of people who withdrew."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from brainage.errors import DataError

_NAMED = re.compile(r"withdr|(?<![A-Za-z0-9])w\d{3,}|^w\d+(?![a-z0-9])", re.IGNORECASE)
_READ = re.compile(r"^[^.]+$|\.(csv|txt|tsv|dat)$", re.IGNORECASE)
_OTHER = re.compile(r"\.(gz|xlsx?|ods|docx?|rtf|pdf|enc|zip)$", re.IGNORECASE)


def is_withdrawal(name: str) -> bool:
    """Whether a file of this name is taken for a withdrawal list.

    >>> [is_withdrawal(name) for name in ("w12345_20240101", "my_withdrawals.tsv", "W1_2.csv", "ukb12345.csv")]
    [True, True, True, False]
    """
    return bool(_NAMED.search(name) and _READ.search(name))


def find_withdrawals(root: Path, named: Sequence[str] = ()) -> tuple[list[Path], list[str]]:
    """Withdrawal lists anywhere below the root, and those named; and files called like one in a form not read."""
    files = [file for file in walk(root) if _NAMED.search(file.rpartition("/")[2])]
    found = [root / file for file in files if is_withdrawal(file.rpartition("/")[2])]
    given = [root / name for name in named if (root / name) not in found]
    strange = [file for file in files if _OTHER.search(file) and (root / file) not in given]
    return found + given, strange


def walk(root: Path, below: str = "") -> Iterator[str]:
    """Files under root as relative paths with /, each folder sorted; hidden ones and links upwards passed over."""
    folders: list[str] = []
    files: list[str] = []
    here = root / below
    try:
        entries = sorted(os.scandir(here), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{here}: cannot be listed ({error.strerror or error})") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            files.append(f"{below}{entry.name}")
        elif not (entry.is_symlink() and here.resolve().is_relative_to(Path(entry.path).resolve())):
            folders.append(f"{below}{entry.name}")
    yield from files
    for folder in folders:
        yield from walk(root, f"{folder}/")
