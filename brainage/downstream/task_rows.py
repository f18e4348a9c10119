"""Rows of one task of one readout: its name, cohort and split are said once."""

from __future__ import annotations

from typing import Any

import numpy as np

from brainage.downstream.readout import Readout
from brainage.downstream.results import missing_row, result_row, too_few_row
from brainage.statistics.bootstrap import Interval


class TaskRows:
    """Makes rows of RESULT_COLUMNS; `parts` are phrases such as `group=CN`."""

    def __init__(self, readout: Readout, task: str) -> None:
        self.where = (readout.label, readout.cohort, readout.split, task)

    def row(self, metric: str, found: Interval, n: int, *notes: str) -> dict[str, Any]:
        return result_row(*self.where, metric, found, n, *notes)

    def missing(self, metric: str, reason: str, *parts: str) -> dict[str, Any]:
        return missing_row(*self.where, metric, reason, *parts)

    def too_few(self, metric: str, n: int, *parts: str) -> dict[str, Any]:
        return too_few_row(*self.where, metric, n, "; ".join(parts))


def alone(value: float) -> Interval:
    """A number without an interval: a p value, a count, a share."""
    return Interval(float(value), np.nan, np.nan)


def as_known(correction: str) -> list[str]:
    """What a number of a corrected gap leaves out of its interval, as phrases of its note.

    >>> as_known("beheshti"), as_known("none")
    (['the correction is taken as known'], [])
    """
    return [] if correction == "none" else ["the correction is taken as known"]
