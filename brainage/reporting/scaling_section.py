"""Section: a study beside the run (more people, more sites, other settings), from the files that the study wrote."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pandas as pd

from brainage.errors import DataError
from brainage.reporting.page import Block, Drawn, Page
from brainage.reporting.tables import Cell, Estimate, Table


def scaling(page: Page) -> list[Block]:
    """Figures and summary of `brainage study`; raises DataError where the folder is not one of a study."""
    folder = page.study
    if folder is None:
        return []
    if not (folder / "study.html").is_file():
        raise DataError(f"study folder {folder}: no study.html; expected the folder that `brainage study` wrote")
    drawn = [_figure(path) for path in sorted((folder / "figures").glob("*.svg"))]
    summary = folder / "tables" / "summary.csv"
    return [
        Block("text", f"From the study {folder.name}: networks trained alike but for what its arms say."),
        *([Block("figures", drawn)] if drawn else []),
        *([page.table(summary_table(pd.read_csv(summary)))] if summary.is_file() else []),
    ]


def summary_table(summary: pd.DataFrame) -> Table:
    """One row an arm, one column a metric: mean over seeds with its interval over seeds."""
    shown = []
    for arm, rows in summary.groupby("arm", sort=False):
        cells: dict[str, object] = {"Arm": str(arm)}
        for row in rows.itertuples():
            found = Estimate(float(row.estimate), float(row.low), float(row.high), seed_sd=float(row.seed_sd))
            cells[metric_words(str(row.metric))] = found.cell(3, found.seeds_line(3))
        shown.append(cells)
    frame = pd.DataFrame(shown).fillna(dict.fromkeys(shown[0], "–") if shown else "")
    frame = frame.map(lambda value: value if isinstance(value, Cell) else Cell("–" if pd.isna(value) else str(value)))
    note = "In brackets the t interval over seeds, which one seed does not have."
    return Table("study", "Every arm of the study: mean over seeds", summary, frame, note)


def metric_words(metric: str) -> str:
    """
    >>> metric_words("age/test_external/mae_years")
    'age, test external: mae years'
    """
    task, _, rest = metric.partition("/")
    split, _, name = rest.rpartition("/")
    return f"{task}, {split}: {name}".replace("_", " ")


def _figure(path: Path) -> Drawn:
    source = "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
    words = re.sub(r"_+", " ", path.stem)
    return Drawn(path.stem, source, f"Figure of the study {path.parent.parent.name}: {words}.", words)
