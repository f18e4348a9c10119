"""Part of a study's page: age error against AUC over all its networks and checkpoints."""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainage.data.table import write_atomically
from brainage.downstream.mae_auc import MAES
from brainage.downstream.results import parts_of
from brainage.reporting.page import Block, Canvas, Drawn
from brainage.reporting.tables import Table
from brainage.studies.elsewhere import Points
from brainage.studies.figures import mae_against_auc
from brainage.studies.study import Form

READING = (
    "Age error against diagnosis, over networks and their checkpoints. r below 0: networks that err less in age tell "
    "the groups apart better. Checkpoints of one training are no networks of their own, so intervals (95 %, jackknife "
    "on the scale of Fisher's z) are over trainings, of the same people judged. A training moves both numbers over "
    "its steps: a correlation over checkpoints mixes that road with what sets trainings apart, which the rows of last "
    "points alone show."
)


def mae_auc_blocks(canvas: Canvas, form: Form, found: Points) -> list[Block]:
    """A figure of each pair that has points, the correlations, and points.csv beside the page."""
    if found.points.empty:
        return []
    write_atomically(canvas.path / "points.csv", lambda path: found.points.to_csv(path, index=False))
    order = pd.Categorical(found.points["arm"], categories=list(form.arms))
    by_arm = found.points.assign(arm=order).sort_values(["arm", "run", "step"]).astype({"arm": "string"})
    drawn = [
        figure for pair, part in by_arm.groupby("pair", sort=False) if (figure := _figure(canvas, str(pair), part))
    ]
    blocks = [Block("text", READING)]
    if drawn:
        blocks.append(Block("figures", drawn))
    return [*blocks, canvas.table(_table(found.rows))]


def _figure(canvas: Canvas, pair: str, part: pd.DataFrame) -> Drawn | None:
    known = part.dropna(subset=[*MAES.values(), "auc"])
    if known.empty:
        return None
    figure = mae_against_auc(known, pair=pair)
    r = known["mae_external_years"].corr(known["auc"])
    alt = f"AUC of {pair} against age error of {len(known)} networks and checkpoints; Pearson r {r:+.2f} (external)."
    caption = "Large: the finished network; small: its earlier checkpoints. A colour an arm."
    return canvas.draw(f"mae_auc_{pair.replace('-', '_')}", figure, alt=alt, caption=caption)


def _table(rows: pd.DataFrame) -> Table:
    shown = []
    for row in rows.itertuples():
        parts = parts_of(str(row.note))
        known = np.isfinite(float(str(row.estimate)))
        ends = f"[{row.low:.2f}, {row.high:.2f}]" if np.isfinite(float(str(row.low))) else "–"
        shown.append(
            {
                "pair": parts["pair"], "MAE": parts["subset"], "of": f"{parts.get('group', 'all')} points",
                "correlation": str(row.metric).replace("_r", ""), "r": f"{row.estimate:.2f}" if known else "–",
                "interval": ends, "n": str(row.n), "note": "" if known else str(row.note).rpartition("; ")[2],
            }
        )  # fmt: skip
    return Table(
        "mae_auc", "Correlation of age error and AUC of the probe", rows, pd.DataFrame(shown),
        words=("pair", "MAE", "of", "correlation", "note"), note="n: points. What an interval rests on is in the CSV.",
    )  # fmt: skip
