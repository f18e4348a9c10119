"""The data sheet: n, people, ages by sex, site and diagnosis, quality, what was left out; one block a cohort.

The same blocks are a section of a run's report and, with `write_data_sheet`, a page of their own. Only groups are
shown: sexes and ages of fewer than FEWEST_PEOPLE people are not, and reasons name nobody.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from brainage import __version__
from brainage.data.table import PERSON, SPLITS, write_atomically
from brainage.downstream.results import FEWEST_PEOPLE
from brainage.reporting import figures
from brainage.reporting.cohort import (
    ages_by_site,
    cohorts_sheet,
    diagnosis_sheet,
    dropped_sheet,
    site_sheet,
    split_sheet,
    visits_sheet,
)
from brainage.reporting.page import Block, Canvas, Drawn
from brainage.reporting.quality_sheet import quality_sheet
from brainage.reporting.style import ACCENT, SPLIT_NAMES
from brainage.reporting.tables import Table

MOST_SITES_DRAWN = 24
SEXES = {"F": "female", "M": "male", "": "sex unknown"}
DIAGNOSES = {"CN": "CN", "MCI": "MCI", "AD": "AD", "other": "other diagnosis", "": "diagnosis unknown"}


def write_data_sheet(
    folder: Path,
    table: pd.DataFrame,
    dropped: pd.DataFrame | None = None,
    quality: pd.DataFrame | None = None,
    *,
    title: str = "",
) -> Path:
    """Write data_sheet.html, its figures (figures/*.svg and .png) and tables (tables/*.csv and .tex) into `folder`.

    `table` is the canonical table, with or without splits; `dropped` and `quality` are shown where they are there.
    """
    from brainage.reporting.report import page_environment

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    blocks = data_sheet(Canvas(folder), table, dropped, quality)
    title = title or ", ".join(sorted(table["cohort"].unique()))
    template = page_environment().get_template("data_sheet.html.j2")
    text = template.render(title=title, blocks=blocks, version=__version__)
    path = folder / "data_sheet.html"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def data_sheet(
    canvas: Canvas, table: pd.DataFrame, dropped: pd.DataFrame | None, quality: pd.DataFrame | None = None
) -> list[Block]:
    """The blocks of a table: of several cohorts an overview, then a block of each."""
    cohorts = sorted(table["cohort"].unique())
    if len(cohorts) < 2:
        return _one_cohort(canvas, table, dropped, quality)
    ages = _grouped(table, "cohort", {name: name for name in cohorts})
    drawn = [_histogram(canvas, "ages_by_cohort", ages, {name: name for name in ages}, "cohort")] if ages else []
    blocks = [canvas.table(cohorts_sheet(table)), Block("figures", drawn)]
    for cohort in cohorts:
        left_out, judged = (None if frame is None else frame[frame["cohort"] == cohort] for frame in (dropped, quality))
        blocks += _one_cohort(canvas, table[table["cohort"] == cohort], left_out, judged, cohort)
    if dropped is not None and not (elsewhere := dropped[~dropped["cohort"].isin(cohorts)]).empty:
        sheet = _named(dropped_sheet(elsewhere), "none of these")
        blocks.append(canvas.table(sheet)._replace(title="Scans left out of cohorts that no scan is left of"))
    return blocks


def _one_cohort(
    canvas: Canvas, table: pd.DataFrame, dropped: pd.DataFrame | None, quality: pd.DataFrame | None, of: str = ""
) -> list[Block]:
    blocks = [canvas.table(_named(split_sheet(table), of))]
    blocks.append(Block("figures", _figures(canvas, table, f"_{_slug(of)}" if of else "")))
    if table["diagnosis"].nunique(dropna=False) > 1:
        blocks.append(canvas.table(_named(diagnosis_sheet(table), of)))
    if table.duplicated(PERSON).any():
        blocks.append(canvas.table(_named(visits_sheet(table), of)))
    blocks.append(canvas.table(_named(site_sheet(table), of), folded=table["site"].nunique() > 8))
    judged = quality_sheet(table, quality)
    if judged is None:
        blocks.append(Block("text", "No quality measure: the cohort brings none, and none was computed."))
    else:
        blocks.append(canvas.table(_named(judged, of)))
    if dropped is None:
        blocks.append(Block("text", "There is no dropped.tsv: scans left out, if any, were not recorded."))
    elif dropped.empty:
        blocks.append(Block("text", "No scan of the cohort was left out."))
    else:
        blocks.append(canvas.table(_named(dropped_sheet(dropped), of)))
    return blocks


def _figures(canvas: Canvas, table: pd.DataFrame, suffix: str) -> list[Drawn]:
    """Ages by split, sex, diagnosis and site; groups of few people are left out of each."""
    splits = {split: SPLIT_NAMES[split] for split in SPLITS}
    if table["split"].isna().all():
        splits = {"": "all"}
    drawn = []
    for column, names in (("split", splits), ("sex", SEXES), ("diagnosis", DIAGNOSES)):
        ages = _grouped(table, column, names)
        if ages and (column == "split" or len(ages) > 1):
            name = f"ages{'' if column == 'split' else f'_by_{column}'}{suffix}"
            drawn.append(_histogram(canvas, name, ages, names, column))
    return drawn + _site_figures(canvas, table, suffix)


def _grouped(table: pd.DataFrame, column: str, names: dict[str, str]) -> dict[str, np.ndarray]:
    """Ages of each group of FEWEST_PEOPLE people or more; the empty code is "unknown"."""
    code = table[column].astype("string").fillna("")
    groups = {name: table[code == name] for name in names}
    enough = {name: rows for name, rows in groups.items() if len(rows.drop_duplicates(PERSON)) >= FEWEST_PEOPLE}
    return {name: rows["age_years"].dropna().to_numpy(float) for name, rows in enough.items()}


def _histogram(canvas: Canvas, name: str, ages: dict[str, np.ndarray], names: dict[str, str], column: str) -> Drawn:
    figure = figures.age_histogram(ages, names=SPLIT_NAMES if column == "split" and "" not in ages else names)
    medians = "; ".join(f"{names[group]} {np.median(years):.0f}" for group, years in ages.items())
    alt = f"Scans by age in five-year bins, {column} by {column}; median ages: {medians} years."
    return canvas.draw(name, figure, alt=alt, caption="" if column == "split" else f"Ages by {column}.")


def _site_figures(canvas: Canvas, table: pd.DataFrame, suffix: str) -> list[Drawn]:
    rows = ages_by_site(table)
    if len(rows) < 2:
        return []
    largest = rows.head(MOST_SITES_DRAWN).sort_values("estimate", kind="stable")
    more = f" The {len(largest)} largest of {len(rows)} sites." if len(largest) < len(rows) else ""
    span = f"from {largest['estimate'].min():.0f} to {largest['estimate'].max():.0f} years"
    dots = figures.dots_with_intervals(
        largest.assign(name=figures.with_count(largest["site"], largest["people"])), xlabel="age (years), mean ± sd",
        title="Ages by site (people)", colours=[ACCENT] * len(largest), from_zero=False,
    )  # fmt: skip
    sites = table["site"].astype("string").fillna("unknown")
    ages = {site: table.loc[sites == site, "age_years"].dropna().to_numpy(float) for site in largest["site"]}
    strips = figures.age_strips(ages, title="Age histogram by site (scans)")
    return [
        canvas.draw(
            f"ages_by_site{suffix}", dots, alt=f"Mean age by site, {span}.",
            caption=f"Where sites differ in age, a model can read age from the site.{more}",
        ),
        canvas.draw(
            f"site_ages{suffix}", strips, alt=f"Scans of each site in five-year bins of age; mean ages {span}.",
            caption=f"Each row is a site; darker bins hold more of its scans.{more}",
        ),
    ]  # fmt: skip


def _named(table: Table, cohort: str) -> Table:
    """The table under a name and caption of one cohort of several."""
    if cohort:
        table.name, table.caption = f"{table.name}_{_slug(cohort)}", f"{table.caption} ({cohort})"
    return table


def _slug(name: str) -> str:
    return re.sub(r"[^\w-]", "_", name)
