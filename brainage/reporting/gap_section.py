"""Part of a cohort's section: the brain-age gap by group, raw beside corrected, with contrasts and repeats."""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainage.downstream.gap import first_scans, groups_of
from brainage.downstream.results import FEWEST_PEOPLE
from brainage.reporting import clinical_figures
from brainage.reporting.evaluations import Evaluation
from brainage.reporting.page import Block, Drawn
from brainage.reporting.task_tables import CORRECTIONS, Column, enough, table_blocks

GAP_NAMES = {"none": "Gap, not corrected", "": "Gap"}


def gap(evaluation: Evaluation) -> list[Block]:
    """Figures of the gaps and tables of means, contrasts and repeats."""
    canvas, blocks = evaluation.canvas, []
    drawn = _figures(evaluation)
    if drawn:
        blocks.append(Block("figures", drawn))
    shown = shown_corrections(evaluation)
    differences, groups = evaluation.rows("gap_contrast"), evaluation.rows("gap")
    blocks += table_blocks(
        canvas, "gap_contrasts", "Differences of the gap between groups", _in_order(differences, "contrast"),
        {"contrast": "Contrast", "correction": "Correction"},
        [
            Column("difference_years", "Difference (years)", sign=True), Column("hedges_g", "Hedges' g", sign=True),
            Column("p", "p", kind="p"), Column("p_holm", "p, Holm", kind="p"),
        ],
        note="Above 0: the first group's brains look older for their age than the second's.",
    )  # fmt: skip
    blocks += table_blocks(
        canvas, "gap_groups", "The gap by group", _in_order(groups, "group", shown),
        {"group": "Group", "correction": "Correction"},
        [
            Column("mean_years", "Mean (years)", sign=True), Column("sd_years", "SD (years)"),
            Column("age_slope", "Slope on age", 3, sign=True), Column("mae_years", "MAE (years)"),
        ],
        note="Corrected ages hold the chronological age: their MAE is inflated and no measure of the model.",
    )  # fmt: skip
    blocks += table_blocks(
        canvas, "gap_repeats", "Two scans of one person within 90 days", evaluation.rows("gap_repeat"),
        {"correction": "Correction"}, [Column("icc", "ICC"), Column("sd_years", "SD of repeats (years)")],
    )  # fmt: skip
    return blocks


def _in_order(rows: pd.DataFrame, part: str, only: list[str] | None = None) -> pd.DataFrame:
    """Raw beside corrected: sorted by the part as it came, then by correction; `only` some corrections."""
    place = {name: number for number, name in enumerate(dict.fromkeys(rows[part]))}
    some = rows if only is None else rows[rows["correction"].isin([*only, ""])]
    return some.sort_values(part, key=lambda names: names.map(place), kind="stable")


def shown_corrections(evaluation: Evaluation) -> list[str]:
    """None and the one that other tasks read."""
    chosen = evaluation.settings.correction
    return list(dict.fromkeys(["none", chosen if chosen != "none" else "beheshti"]))


def gap_column(correction: str) -> str:
    """Column of gaps.parquet."""
    return f"gap_{correction}_years"


def by_group(scans: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
    """Gaps of each group of FEWEST_PEOPLE or more; where nobody has a diagnosis, of everybody."""
    scans = scans[scans[column].notna()]
    groups = {name: scans[rows] for name, rows in groups_of(scans).items()}
    return {name: rows[column].to_numpy(float) for name, rows in groups.items() if len(rows) >= FEWEST_PEOPLE}


def _figures(evaluation: Evaluation) -> list[Drawn]:
    frame = evaluation.frame("gaps")
    if frame is None:
        return []
    (scans, _), corrections = first_scans(frame), [c for c in shown_corrections(evaluation) if gap_column(c) in frame]
    every = {correction: by_group(scans, gap_column(correction)) for correction in corrections}
    values = [found for groups in every.values() for found in groups.values()]
    if not values:
        return []
    low, high = np.percentile(np.concatenate(values), [0.1, 99.9])
    limits = (float(low) - 2, float(high) + 2)
    drawn = [_by_group(evaluation, one, groups, limits) for one, groups in every.items() if groups]
    slope = _against_age(evaluation, scans, corrections)
    return drawn + ([slope] if slope else [])


def _by_group(
    evaluation: Evaluation, correction: str, groups: dict[str, np.ndarray], limits: tuple[float, float]
) -> Drawn:
    rows = enough(evaluation.rows("gap", "mean_years", correction=correction))
    means = rows.dropna(subset=["low"])
    name = GAP_NAMES.get(correction, f"Gap, corrected ({CORRECTIONS[correction]})")
    figure = clinical_figures.values_by_group(
        groups, means, most=evaluation.settings.scatter_points, ylabel="gap (years)",
        title=name, limits=limits,
    )  # fmt: skip
    told = "; ".join(f"{group} {found.mean():+.1f} years in {len(found)} people" for group, found in groups.items())
    return evaluation.canvas.draw(
        f"gap_{correction}", figure, alt=f"{name}, by group, at the first scan of each person; means: {told}.",
        caption="One dot a person (first scan); diamonds: mean with 95 % interval."
        + (" sMCI and pMCI are part of MCI." if {"sMCI", "pMCI"} & set(groups) else ""),
    )  # fmt: skip


def _against_age(evaluation: Evaluation, scans: pd.DataFrame, corrections: list[str]) -> Drawn | None:
    """Whether the gap of healthy people still falls with age."""
    rows = scans[scans["healthy"].astype(bool)]
    rows = rows.dropna(subset=["age_years", *map(gap_column, corrections)])
    if len(rows) < FEWEST_PEOPLE or np.ptp(rows["age_years"].to_numpy(float)) == 0:
        return None
    gaps = {CORRECTIONS[one].replace("none", "not corrected"): rows[gap_column(one)].to_numpy(float)
            for one in corrections}  # fmt: skip
    ages = rows["age_years"].to_numpy(float)
    figure = clinical_figures.gap_against_age(
        ages, gaps, most=evaluation.settings.scatter_points, ylabel="gap (years)", title="Gap of healthy people by age"
    )
    slopes = "; ".join(f"{name} {np.polyfit(ages, gap, 1)[0]:+.2f} years a year" for name, gap in gaps.items())
    return evaluation.canvas.draw(
        "gap_by_age", figure, alt=f"Gap of {len(rows)} healthy people against age; slopes: {slopes}.",
        caption="A line that falls is regression to the mean, not health; a correction should make it flat.",
    )  # fmt: skip
