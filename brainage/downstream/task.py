"""What every downstream task gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from brainage.downstream.results import missing_row, results_frame


@dataclass(frozen=True)
class TaskResult:
    """`results` has RESULT_COLUMNS; `frames`: name -> rows about single people, kept as `<name>.parquet`."""

    results: pd.DataFrame
    frames: dict[str, pd.DataFrame] = field(default_factory=dict)


def not_computed(run: str, cohort: str, split: str, task: str, metric: str, reason: str, *parts: str) -> TaskResult:
    """One row that says why there is no number."""
    return TaskResult(results_frame([missing_row(run, cohort, split, task, metric, reason, *parts)]))
