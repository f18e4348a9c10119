"""Part of a cohort's section: predicted against chronological age, its calibration, and intervals of a stated coverage.

The run's own cohort has its scatter and errors in sections of their own; here it has the intervals only.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainage.data.table import PERSON
from brainage.downstream.results import FEWEST_PEOPLE, SCORED
from brainage.reporting import figures
from brainage.reporting.age_errors import signed_error
from brainage.reporting.evaluations import Evaluation
from brainage.reporting.page import Block, Drawn
from brainage.reporting.style import ACCENT
from brainage.reporting.task_tables import Column, enough, split_name, table_blocks

AGE_COLUMNS = [
    Column("mae_years", "MAE (years)"), Column("rmse_years", "RMSE (years)"), Column("r2", "R²"),
    Column("pearson_r", "r"), Column("bias_years", "Mean error (years)", sign=True), Column("age_slope", "Slope"),
]  # fmt: skip


def age(evaluation: Evaluation) -> list[Block]:
    """Errors of another cohort; of every cohort the intervals and the probes beyond the first."""
    canvas, rows = evaluation.canvas, evaluation.rows("age")
    rows = rows[(rows["after"] == "") & (rows["term"] == "")]
    several = rows["probe"].nunique() > 1
    blocks = []
    if not evaluation.own and (drawn := _figures(evaluation)):
        blocks.append(Block("figures", drawn))
    if not evaluation.own or several:
        blocks += table_blocks(
            canvas, "age_errors", "Predicted age", rows, {"probe": "Probe", "ages": "Ages"}, AGE_COLUMNS,
            note="Slope: of predicted on chronological age, 1 when calibrated, below 1 when drawn to the mean."
            + _guess(evaluation),
            names={"probe": lambda name: name or evaluation.settings.age_probes[0], "ages": lambda name: name or "all"},
        )  # fmt: skip
    return blocks + _intervals(evaluation)


def scored(evaluation: Evaluation) -> pd.DataFrame | None:
    """Predictions of the main network on the people judged: the healthy, where it is told who is."""
    rows = evaluation.frame("predictions")
    if rows is None:
        return None
    if "healthy" in rows:
        rows = rows[rows["healthy"].astype(bool)]
    rows = rows[rows["split"].isin(SCORED)].dropna(subset=["age_years", "predicted_age_years"])
    return rows if len(rows.drop_duplicates(PERSON)) >= FEWEST_PEOPLE else None


def _guess(evaluation: Evaluation) -> str:
    """What answering the mean age would give: an MAE without it means nothing."""
    if evaluation.results is None:
        return ""
    rows = evaluation.results
    rows = rows[(rows["model"] == "mean_predictor") & (rows["task"] == "age") & (rows["metric"] == "mae_years")]
    told = [f"{row.estimate:.2f} years" for row in rows.itertuples() if np.isfinite(row.estimate)]
    return f" Answering everybody with the mean age gives {told[0]}." if told else ""


def _figures(evaluation: Evaluation) -> list[Drawn]:
    rows = scored(evaluation)
    if rows is None:
        return []
    ages, predicted = rows["age_years"].to_numpy(float), rows["predicted_age_years"].to_numpy(float)
    mae, most = float(np.abs(predicted - ages).mean()), evaluation.settings.scatter_points
    ends = (float(min(ages.min(), predicted.min())) - 2, float(max(ages.max(), predicted.max())) + 2)
    people = len(rows.drop_duplicates(PERSON))
    figure = figures.age_scatter(
        ages, predicted, split=str(rows["split"].iloc[0]), most=most, limits=ends,
        title=f"{evaluation.cohort}: {people} people, MAE {mae:.2f} years",
    )  # fmt: skip
    shown = f" {most} of {len(rows)} scans are drawn; the MAE is of all." if len(rows) > most else ""
    alt = (
        f"Scatter of predicted against chronological age on {evaluation.cohort}: {len(rows)} scans of {people} people "
        f"aged {ages.min():.0f} to {ages.max():.0f}, mean absolute error {mae:.2f} years."
    )
    caption = f"Each dot is a scan. Dashed: predicted age equals chronological age.{shown}"
    drawn = [evaluation.canvas.draw("age_scatter", figure, alt=alt, caption=caption)]
    signed = signed_error(rows)
    if len(signed):
        figure = figures.error_by_band(
            signed, ylabel="predicted − chronological (years)", title="Calibration by age", zero_line=True
        )
        each = signed.sort_values("part", key=figures.band_start)["estimate"]
        alt = f"Mean signed error by decade of age: youngest {each.iloc[0]:+.1f} years, oldest {each.iloc[-1]:+.1f}."
        caption = "Above 0: predicted too old. 95 % intervals over people."
        drawn.append(evaluation.canvas.draw("age_calibration", figure, alt=alt, caption=caption))
    return drawn


def _intervals(evaluation: Evaluation) -> list[Block]:
    """How often an interval that is to hold a stated share of people does."""
    rows = evaluation.rows("age_interval")
    if rows.empty:
        return []
    drawn = _coverage(evaluation, rows)
    return ([Block("figures", drawn)] if drawn else []) + table_blocks(
        evaluation.canvas, "age_intervals", "Intervals of predicted age",
        rows[(rows["site"] == "") & (rows["sex"] == "")],
        {"coverage": "Meant to hold", "probe": "Probe", "band": "Ages", "group": "Group"},
        [Column("coverage", "Holds (%)", 1, 100), Column("width_years", "Width (years)")],
        names={
            "coverage": _percent, "band": lambda name: name or "all", "group": lambda name: name or "all",
            "probe": lambda name: name or evaluation.settings.age_probes[0],
        },
    )  # fmt: skip


def _coverage(evaluation: Evaluation, rows: pd.DataFrame) -> list[Drawn]:
    """Coverage by decade of age, or by split where there are no decades, of the first probe."""
    rows = enough(rows[(rows["metric"] == "coverage") & (rows["site"] == "") & (rows["sex"] == "")])
    rows = rows[(rows["probe"] == rows["probe"].iloc[0]) & (rows["group"] == "")] if len(rows) else rows
    rows = rows.dropna(subset=["low", "high"])
    if rows.empty:
        return []
    wanted = pd.to_numeric(rows["coverage"], errors="coerce").fillna(evaluation.settings.conformal_coverage).iloc[0]
    names = [
        f"{split_name(str(row.split))}{', ' + str(row.band) if row.band else ''} ({row.n})" for row in rows.itertuples()
    ]
    dots = rows.assign(name=names)[["name", "estimate", "low", "high"]]
    for column in ("estimate", "low", "high"):
        dots[column] *= 100
    figure = figures.dots_with_intervals(
        dots, xlabel="people inside the interval (%)", title="Coverage of the intervals", colours=[ACCENT] * len(dots),
        reference=100 * float(wanted), reference_name="meant to hold", from_zero=False,
    )  # fmt: skip
    told = "; ".join(f"{name} {value:.0f} %" for name, value in zip(dots["name"], dots["estimate"], strict=True))
    return [evaluation.canvas.draw("age_coverage", figure, alt=f"Share of people inside their interval: {told}.")]


def _percent(share: str) -> str:
    number = pd.to_numeric(share, errors="coerce")
    return f"{100 * number:g} %" if pd.notna(number) else share or "–"
