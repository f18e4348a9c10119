"""The metric journal: every measured point of a run, in `metrics.jsonl`, whatever becomes of MLflow."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainage.tracking.lines import LineFile, read_lines

if TYPE_CHECKING:
    import pandas as pd

JOURNAL = "metrics.jsonl"


class MetricJournal:
    """Append-only points `{"step": 12, "time_ms": 1700000000000, "metrics": {"train/loss": 4.2}}`, one line a call.

    JSON has no NaN: such values are the texts "NaN", "Infinity" and "-Infinity", which `float` reads back.

    Opening it reads what is there. A resumed run replays the steps since its last checkpoint; their points are in the
    journal already (bit-equal, or measured before, like images/s) and keep their first value and time. One process
    writes: rank zero.
    """

    def __init__(self, path: Path) -> None:
        self._lines = LineFile(path)
        self._values: dict[str, dict[int, float]] = {}
        for line, _ in read_lines(path):
            for name, value in line.get("metrics", {}).items():
                self._values.setdefault(name, {})[line["step"]] = float(value)

    def log(self, step: int, metrics: Mapping[str, Any], *, revise: bool = False) -> int:
        """Append the points that are new at this step and give their number; values are anything `float` takes.

        `revise` also appends a known point whose value has changed (an evaluation that was repeated); readers take
        the last one.
        """
        fresh: dict[str, float] = {}
        for name, value in metrics.items():
            number = float(value)
            known = self._values.setdefault(name, {})
            if step not in known or (revise and not _same(known[step], number)):
                fresh[name] = number
        if fresh:
            plain = {name: number if math.isfinite(number) else _text(number) for name, number in fresh.items()}
            self._lines.append({"step": int(step), "time_ms": time.time_ns() // 1_000_000, "metrics": plain})
        for name, number in fresh.items():  # only once it is on disk
            self._values[name][step] = number
        return len(fresh)

    def close(self) -> None:
        self._lines.close()

    def __enter__(self) -> MetricJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_journal(path: Path) -> pd.DataFrame:
    """The points of a journal: columns step (int64), time_ms (int64), name, value (float64), in the order of writing.

    One row for each (name, step), the last one written. An absent journal gives no rows.
    """
    import pandas as pd

    rows = [
        (line["step"], line["time_ms"], name, float(value))
        for line, _ in read_lines(path)
        for name, value in line.get("metrics", {}).items()
    ]
    frame = pd.DataFrame(rows, columns=["step", "time_ms", "name", "value"])
    frame = frame.astype({"step": "int64", "time_ms": "int64", "name": "string", "value": "float64"})
    return frame.drop_duplicates(["name", "step"], keep="last", ignore_index=True)


def _same(left: float, right: float) -> bool:
    return left == right or (math.isnan(left) and math.isnan(right))


def _text(number: float) -> str:
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
