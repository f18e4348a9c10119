"""What the checks of a cohort look at, how a check says what is wrong, and who is watched meanwhile."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pandas as pd

from brainage.data.table import CohortTable
from data_modules.reader import CohortReader


class WrongError(Exception):
    """A check that failed, with what to mend."""


class Inspected(NamedTuple):
    """The whole table of a cohort, and the samples of a few of its rows."""

    reader: CohortReader
    table: CohortTable
    split: pd.DataFrame | None  # as published
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


@contextmanager
def watched() -> Iterator[list[str]]:
    """The images, arrays and members of zips that are opened meanwhile; a zip's directory may be looked at."""
    opened: list[str] = []

    def watch(function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def watching(*words: Any, **options: Any) -> Any:
            opened.append(name(*words))
            return function(*words, **options)

        return watching

    def first(*words: Any) -> str:
        return str(words[0]) if words else "?"

    def member(archive: zipfile.ZipFile, what: Any = "?", *rest: Any) -> str:
        return f"{archive.filename}!{getattr(what, 'filename', what)}"

    with (
        patch("numpy.load", watch(np.load, first)),
        patch("numpy.memmap", watch(np.memmap, first)),
        patch("numpy.fromfile", watch(np.fromfile, first)),
        patch("nibabel.load", watch(nib.load, first)),
        patch("zipfile.ZipFile.open", watch(zipfile.ZipFile.open, member)),
    ):
        yield opened
