"""Section: predicted against chronological age, and the error by age and by site."""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainage.data.table import person_keys
from brainage.downstream.results import FEWEST_PEOPLE, SCORED
from brainage.reporting import figures
from brainage.reporting.page import Block, Drawn, Page
from brainage.reporting.style import SPLIT_COLOURS, SPLIT_NAMES
from brainage.reporting.tables import Estimate, Table, model_name, parts
from brainage.statistics.bootstrap import bootstrap

RESAMPLES = 1000
MOST_SITES_DRAWN = 24  # a figure


def age_errors(page: Page) -> list[Block]:
    """Scatter of each test split, then the error by decade of age and by site."""
    run, rows = page.run, page.run.evaluated
    if rows is None:
        return [page.missing("Age scatter and errors: there are no predictions of this network yet.")]
    name = model_name(run.model)
    return [
        Block(
            "text",
            f"One network ({name}, seed {run.experiment.seed}); each dot is a scan. Intervals: 95 %, over people.",
        ),
        Block("figures", [_scatter(page, rows, split) for split in SCORED if (rows["split"] == split).any()]),
        *_by_age(page, rows),
        *_by_site(page),
    ]


def _scatter(page: Page, rows: pd.DataFrame, split: str) -> Drawn:
    part, most = rows[rows["split"] == split], page.run.experiment.evaluate.scatter_points
    ages, predicted = part["age_years"].to_numpy(float), part["predicted_age_years"].to_numpy(float)
    both = rows[["age_years", "predicted_age_years"]].to_numpy(float)
    mae, bias = float(np.abs(predicted - ages).mean()), float(np.mean(predicted - ages))
    figure = figures.age_scatter(
        ages, predicted, split=split, most=most, limits=(float(both.min()) - 2, float(both.max()) + 2),
        title=f"{SPLIT_NAMES[split].capitalize()}: n = {len(part)}, MAE {mae:.2f} years",
    )  # fmt: skip
    shown = f" {most} of {len(part)} scans are drawn; the MAE is of all." if len(part) > most else ""
    alt = (
        f"Scatter of predicted against chronological age, {SPLIT_NAMES[split]}: {len(part)} scans aged "
        f"{ages.min():.0f} to {ages.max():.0f}, mean absolute error {mae:.2f} years, mean error {bias:+.2f} years."
    )
    return page.draw(f"age_{split}", figure, alt=alt, caption=f"Dashed: predicted age equals chronological age.{shown}")


def _by_age(page: Page, rows: pd.DataFrame) -> list[Block]:
    absolute, signed = parts(page.run, "band"), signed_error(rows)
    drawn = []
    if len(absolute):
        page.write(_table("error_by_age", "Mean absolute error by decade of age (years)", absolute))
        worst = absolute.loc[absolute["estimate"].idxmax()]
        mae = figures.error_by_band(absolute, ylabel="MAE (years)", title="Error by age", zero_line=False)
        alt = f"Mean absolute error by decade of age; largest {worst['estimate']:.1f} years at {worst['part']}."
        drawn.append(page.draw("error_by_age", mae, alt=alt))
    if len(signed):
        page.write(_table("signed_error_by_age", "Predicted minus chronological age by decade (years)", signed))
        ends = signed.sort_values("part", key=figures.band_start)["estimate"]
        bias = figures.error_by_band(
            signed, ylabel="predicted − chronological (years)", title="Signed error", zero_line=True
        )
        alt = f"Mean signed error by decade: youngest {ends.iloc[0]:+.1f} years, oldest {ends.iloc[-1]:+.1f}."
        caption = "Above 0: predicted too old. Falling with age: predictions are drawn towards the mean."
        drawn.append(page.draw("signed_error_by_age", bias, alt=alt, caption=caption))
    if drawn:
        return [Block("figures", drawn)]
    return [Block("text", f"Errors by age are not drawn: no decade has {FEWEST_PEOPLE} people.")]


def signed_error(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean of predicted minus chronological age by split and decade: split, part, estimate, low, high, n people."""
    decades = (rows["age_years"] // 10 * 10).astype(int)
    bands = decades.astype(str) + "-" + (decades + 9).astype(str)
    found = []
    for (split, band), part in rows.groupby([rows["split"], bands]):
        error = (part["predicted_age_years"] - part["age_years"]).to_numpy(float)
        persons = person_keys(part).to_numpy(dtype=str)
        n = len(np.unique(persons))
        if n >= FEWEST_PEOPLE:
            mean = {"mean": lambda weights, e=error: weights @ e / weights.sum(axis=1)}
            found.append([split, band, *bootstrap(mean, persons, resamples=RESAMPLES, seed=0)["mean"], n])
    return pd.DataFrame(found, columns=["split", "part", "estimate", "low", "high", "n"])


def _by_site(page: Page) -> list[Block]:
    found = parts(page.run, "site")
    if found.empty:
        return [Block("text", f"Errors by site are not drawn: no site has {FEWEST_PEOPLE} people who were scored.")]
    page.write(_table("error_by_site", "Mean absolute error by site (years)", found))
    every = [found[found["split"] == split] for split in SCORED]
    return [Block("figures", [_site_figure(page, rows) for rows in every if len(rows)])]


def _site_figure(page: Page, rows: pd.DataFrame) -> Drawn:
    split = str(rows["split"].iloc[0])
    largest = rows.sort_values("n", ascending=False, kind="stable").head(MOST_SITES_DRAWN)
    shown = largest.sort_values("estimate", ascending=False).assign(
        name=figures.with_count(largest["part"], largest["n"])
    )
    figure = figures.dots_with_intervals(
        shown, xlabel="MAE (years)", title=f"Error by site (people), {SPLIT_NAMES[split]}",
        colours=[SPLIT_COLOURS[split]] * len(shown),
    )  # fmt: skip
    caption = (
        f"The {len(shown)} largest of {len(rows)} sites; all in tables/error_by_site.csv."
        if len(shown) < len(rows)
        else ""
    )
    alt = (
        f"Mean absolute error by site, {SPLIT_NAMES[split]}, {len(rows)} sites: from {rows['estimate'].min():.1f} to "
        f"{rows['estimate'].max():.1f} years."
    )
    return page.draw(f"error_by_site_{split}", figure, alt=alt, caption=caption)


def _table(name: str, caption: str, data: pd.DataFrame) -> Table:
    rows = data[["estimate", "low", "high"]].itertuples(index=False)
    shown = pd.DataFrame({
        "Split": data["split"].map(SPLIT_NAMES), "Part": data["part"], "n": data["n"].map(str),
        "Years": [str(Estimate(*row).cell(2)) for row in rows],
    })  # fmt: skip
    return Table(name, caption, data, shown, words=("Part",))
