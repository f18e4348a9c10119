"""The battery every cohort must pass before it is trained on.

In a test of your own cohort, with pytest:

    from data_modules.check import CHECKS, assert_cohort, inspect_cohort, run_check

    @pytest.mark.parametrize("modality", MyCohort.modalities)
    def test_my_cohort_passes_every_check(modality, tmp_path):
        assert_cohort(MyCohort("/data/mine", modality), tmp_path)

or one test a check, each reported by its name:

    @pytest.mark.parametrize("name", CHECKS)
    def test_my_cohort(name, inspected):  # inspected: a fixture that returns inspect_cohort(reader, folder)
        check = run_check(name, inspected)
        assert check.passed, check.detail

Checks open a handful of scans, spread over the table, so they take seconds on a cohort of any size. What they cannot
see: left and right swapped (the MNI template is symmetric), and ages that are plausible but wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from brainage.data.table import person_keys
from brainage.errors import BrainageError
from data_modules.check_inspected import Inspected, WrongError, watched
from data_modules.check_samples import SAMPLE_CHECKS
from data_modules.check_table import TABLE_CHECKS
from data_modules.reader import CohortReader

__all__ = ["CHECKS", "Check", "assert_cohort", "check_cohort", "format_checks", "inspect_cohort", "run_check"]

CHECKS: dict[str, Callable[[Inspected], str]] = {**TABLE_CHECKS, **SAMPLE_CHECKS}


class Check(NamedTuple):
    name: str
    passed: bool
    detail: str  # what was seen, or what is wrong and where


def check_cohort(reader: CohortReader, scratch: str | Path, *, scans: int = 6) -> list[Check]:
    """Run every check on `reader`; `scratch` is an empty folder for two stores of at most `scans` scans.

    Never raises for what is wrong with the cohort: see `Check.passed`.
    """
    try:
        cohort = inspect_cohort(reader, scratch, scans=scans)
    except Exception as error:
        failed = Check("table", False, _words(error))
        return [failed, *(Check(name, False, "not run: there is no table") for name in CHECKS)]
    table, dropped = cohort.table
    first = Check(
        "table", True, f"{len(table)} scans of {person_keys(table).nunique()} people, {len(dropped)} left out"
    )
    return [first, *(run_check(name, cohort) for name in CHECKS)]


def assert_cohort(reader: CohortReader, scratch: str | Path, *, scans: int = 6) -> None:
    """Raise AssertionError with the whole list unless every check of `check_cohort` passes."""
    checks = check_cohort(reader, scratch, scans=scans)
    if not all(check.passed for check in checks):
        raise AssertionError(f"cohort {reader.name}, {reader.modality}:\n{format_checks(checks)}")


def inspect_cohort(reader: CohortReader, scratch: str | Path, *, scans: int = 6) -> Inspected:
    """What the checks look at: the table, read while it is watched what it opens, and up to `scans` of its rows.

    Raises whatever the reader raises.
    """
    with watched() as opened:
        table = reader.table()
        split = reader.official_split()
    n = len(table.table)
    rows = np.unique(np.linspace(0, n - 1, min(scans, n)).round().astype(int))
    return Inspected(reader, table, split, opened, rows, Path(scratch), {})


def run_check(name: str, cohort: Inspected) -> Check:
    """One check by its name in CHECKS; whatever a third party's reader raises is a finding, not a crash."""
    try:
        return Check(name, True, CHECKS[name](cohort))
    except Exception as error:
        return Check(name, False, _words(error))


def format_checks(checks: list[Check]) -> str:
    """One line a check.

    >>> print(format_checks([Check("table", True, "3 scans"), Check("ages", False, "oldest is 900")]))
    ok    table  3 scans
    WRONG ages   oldest is 900
    """
    width = max(len(check.name) for check in checks)
    return "\n".join(f"{'ok   ' if c.passed else 'WRONG'} {c.name:<{width}}  {c.detail}" for c in checks)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, WrongError | BrainageError) else f"{type(error).__name__}: {error}"
