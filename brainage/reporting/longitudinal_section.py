"""Parts of a cohort's section: how the gap changes over visits, and whether it tells of a later conversion."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from brainage.data.table import PERSON
from brainage.downstream.results import FEWEST_PEOPLE
from brainage.reporting import clinical_figures, longitudinal_figures
from brainage.reporting.clinical_figures import GROUP_COLOURS
from brainage.reporting.evaluations import Evaluation
from brainage.reporting.longitudinal_figures import Curve
from brainage.reporting.page import Block, Drawn
from brainage.reporting.task_tables import Column, enough, table_blocks

LINES = 300  # people drawn as lines at most


COLUMNS = {
    column.metric: column
    for column in (
        Column("slope_years_per_year", "Slope (years a year)", 3, sign=True),
        Column("slope_difference_years_per_year", "Difference of slopes", 3, sign=True),
        Column("difference_years", "Difference (years)", sign=True),
        Column("person_slope_mean_years_per_year", "Mean slope", 3, sign=True),
        Column("person_slope_sd_years_per_year", "SD of slopes", 3),
        Column("coefficient", "Coefficient", 3, sign=True), Column("sd_years", "SD (years)"),
        Column("sd_years_per_year", "SD (years a year)", 3), Column("visits_share", "Share (%)", 1, 100),
        Column("follow_up_years", "Years followed"), Column("follow_up_odds_ratio", "Odds ratio of a second visit", 3),
        Column("hazard_ratio", "Hazard ratio a year of gap", 3), Column("concordance", "Concordance", 3),
        Column("p", "p", kind="p"), Column("p_holm", "p, Holm", kind="p"),
    )
}  # fmt: skip


class Sheet(NamedTuple):
    """One table of the task's rows: those about `part` (none: of any) with one of these metrics."""

    name: str
    caption: str
    metrics: tuple[str, ...]
    keys: dict[str, str]
    part: str = ""
    note: str = ""
    folded: bool = False


SHEETS = [
    Sheet("slopes", "Slope of the gap by group", ("slope_years_per_year",),
          {"group": "Group", "correction": "Correction"},
          note="Years of gap a year, by a mixed model; above 0 the brain ages by more than a year a year."),
    Sheet("slope_differences", "Slopes compared", ("slope_difference_years_per_year", "p", "p_holm"),
          {"group": "Among", "contrast": "Contrast", "correction": "Correction"}, part="contrast",
          note="Above 0: the first group's gap grows faster."),
    Sheet("before_conversion", "Gap of converters above that of stable people", ("difference_years",),
          {"group": "Among", "band": "Time", "correction": "Correction"}, part="band"),
    Sheet("person_slopes", "Slopes of single people",
          ("person_slope_mean_years_per_year", "person_slope_sd_years_per_year"),
          {"group": "Group", "subset": "People with", "correction": "Correction"}, folded=True),
    Sheet("mixed_model", "Other terms of the mixed model", ("coefficient", "p", "sd_years", "sd_years_per_year"),
          {"term": "Term", "correction": "Correction"}, part="term", folded=True),
    Sheet("follow_up", "Who is followed", ("visits_share", "follow_up_years", "follow_up_odds_ratio"),
          {"group": "Group", "subset": "People with", "term": "Term", "correction": "Correction"}, folded=True),
]  # fmt: skip


def longitudinal(evaluation: Evaluation) -> list[Block]:
    """Trajectories, slopes of people, converters by the time to conversion, and the models' numbers."""
    rows, drawn = evaluation.rows("longitudinal"), _figures(evaluation)
    blocks = [Block("figures", drawn)] if drawn else []
    for sheet in SHEETS:
        some = rows[(rows[sheet.part] != "")] if sheet.part else rows
        names = dict.fromkeys(["group", "contrast", "term", "subset"], _told)
        columns = [COLUMNS[metric] for metric in sheet.metrics]
        blocks += table_blocks(
            evaluation.canvas, sheet.name, sheet.caption, some, sheet.keys, columns, note=sheet.note, names=names,
            folded=sheet.folded,
        )  # fmt: skip
    return blocks


def _told(name: str) -> str:
    """A part as words.

    >>> _told("sex_M"), _told("")
    ('sex M', '–')
    """
    return name.replace("_", " ") or "–"


def survival(evaluation: Evaluation) -> list[Block]:
    """Kaplan-Meier by the first visit's gap, and the Cox model."""
    rows, canvas = evaluation.rows("survival"), evaluation.canvas
    metrics = [metric for metric in dict.fromkeys(rows["metric"]) if metric != "p"]
    drawn = _kaplan_meier(evaluation)
    return ([Block("figures", [drawn])] if drawn else []) + table_blocks(
        canvas, "survival", "Time to conversion", rows, {"term": "Term", "group": "Group", "subset": "People"},
        [*(_column(metric) for metric in metrics), Column("p", "p", kind="p")],
        note="A hazard ratio above 1: an older-looking brain at the first visit goes with an earlier conversion.",
        names=dict.fromkeys(["term", "group", "subset"], _told),
    )  # fmt: skip


def _column(metric: str) -> Column:
    """How a metric is shown; one that is not known by its own name in words."""
    return COLUMNS.get(metric) or Column(metric, metric.replace("_", " ").capitalize(), 3)


def _figures(evaluation: Evaluation) -> list[Drawn]:
    frame = evaluation.frame("trajectories")
    if frame is None:
        return []
    frame = frame.dropna(subset=["group", "visit_years", "gap_years"])
    people = frame.drop_duplicates([*PERSON, "group"])["group"].value_counts()
    frame = frame[frame["group"].isin(people.index[people >= FEWEST_PEOPLE])]
    order = {group: place for place, group in enumerate(GROUP_COLOURS)}
    frame = frame.sort_values("group", key=lambda groups: groups.map(lambda one: order.get(one, 99)), kind="stable")
    if frame.empty:
        return []
    drawn = [_trajectories(evaluation, frame)]
    if "slope_years_per_year" in frame:
        drawn += _person_slopes(evaluation, frame)
    if "years_to_conversion" in frame:
        drawn += _conversion(evaluation, frame)
    return drawn


def _ylabel(evaluation: Evaluation) -> str:
    return "gap (years)" if evaluation.settings.correction == "none" else "corrected gap (years)"


def _trajectories(evaluation: Evaluation, frame: pd.DataFrame) -> Drawn:
    most = min(LINES, evaluation.settings.scatter_points)
    figure = longitudinal_figures.trajectories(
        frame, people=most, ylabel=_ylabel(evaluation), title="The gap over the visits"
    )
    told = "; ".join(f"{group} {len(part.drop_duplicates(PERSON))} people" for group, part in frame.groupby("group"))
    return evaluation.canvas.draw(
        "trajectories", figure, alt=f"Gap over the years since the first visit, by group: {told}.",
        caption=f"Thin: at most {most} people; thick: the mean of each year with its 95 % interval.",
    )  # fmt: skip


def _person_slopes(evaluation: Evaluation, frame: pd.DataFrame) -> list[Drawn]:
    """Slopes of the people who have one, by group."""
    each = frame.dropna(subset=["slope_years_per_year"]).drop_duplicates(PERSON)
    groups = {
        str(group): part["slope_years_per_year"].to_numpy(float) for group, part in each.groupby("group", sort=False)
    }
    groups = {group: slopes for group, slopes in groups.items() if len(slopes) >= FEWEST_PEOPLE}
    if not groups:
        return []
    rows = enough(evaluation.rows("longitudinal", "person_slope_mean_years_per_year", subset="2+ visits"))
    rows = rows.dropna(subset=["low"])
    figure = clinical_figures.values_by_group(
        groups, rows[rows["group"] != ""], most=evaluation.settings.scatter_points,
        ylabel="slope of the gap (years a year)", title="Slope of each person",
    )  # fmt: skip
    told = "; ".join(f"{group} {slopes.mean():+.2f} in {len(slopes)} people" for group, slopes in groups.items())
    alt = f"Least-squares slopes of the gap, one a person, by group; means in years a year: {told}."
    return [evaluation.canvas.draw("person_slopes", figure, alt=alt, caption="One dot a person with enough visits.")]


def _conversion(evaluation: Evaluation, frame: pd.DataFrame) -> list[Drawn]:
    rows = frame.dropna(subset=["years_to_conversion"])
    mean = longitudinal_figures.mean_by_year(rows, "years_to_conversion") if len(rows) else rows
    if len(mean) < 2:
        return []
    figure = longitudinal_figures.to_conversion(rows, ylabel=_ylabel(evaluation), title="Converters, by time")
    first, last = mean.iloc[-1], mean.iloc[0]
    alt = (
        f"Mean gap of {len(rows.drop_duplicates(PERSON))} converters by the years to conversion: "
        f"{first['estimate']:+.1f} "
        f"years at {first['years']:g} years before, {last['estimate']:+.1f} at {last['years']:g}."
    )
    caption = "Mean of people with its 95 % interval; different people at different times."
    return [evaluation.canvas.draw("time_to_conversion", figure, alt=alt, caption=caption)]


def _kaplan_meier(evaluation: Evaluation) -> Drawn | None:
    frame = evaluation.frame("survival")
    if frame is None:
        return None
    frame = frame.dropna(subset=["time_years", "event", "stratum"])
    strata = {
        str(name): Curve(part["time_years"].to_numpy(float), part["event"].to_numpy(bool))
        for name, part in frame.groupby("stratum", sort=True)
        if len(part.drop_duplicates(PERSON)) >= FEWEST_PEOPLE
    }
    if not strata:
        return None
    figure = longitudinal_figures.kaplan_meier(strata, ylabel="share not converted", title="By the first visit's gap")
    events = frame.groupby("stratum")["event"].sum()
    told = "; ".join(
        f"{name}: {int(events[name])} of {len(curve.time_years)} converted" for name, curve in strata.items()
    )
    return evaluation.canvas.draw(
        "kaplan_meier", figure, alt=f"Kaplan-Meier curves of time to conversion by stratum of the gap; {told}.",
        caption=f"{told}. Bands: 95 %, log-log. Curves end where fewer than {FEWEST_PEOPLE} people are left.",
    )  # fmt: skip
