"""The report's sections. To add one: write a function from Page to blocks and add a row to SECTIONS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from brainage.data.table import KEY, SPLITS, read_table
from brainage.reporting import figures
from brainage.reporting.cohort import dropped_sheet, site_sheet, split_sheet
from brainage.reporting.figures import SPLIT_NAMES
from brainage.reporting.methods import GLOSSARY, REFERENCES, methods
from brainage.reporting.reproduce import reproduce
from brainage.reporting.run_folder import RunFolder
from brainage.reporting.tables import (
    FEWEST_PEOPLE,
    MAE,
    TESTS,
    Table,
    all_results,
    decade,
    error_by,
    estimate,
    headline,
    mean_predictor,
    model_name,
    models,
    write_table,
)

MOST_SITES_DRAWN = 30


class Drawn(NamedTuple):
    """A figure as the page shows it; `alt` says in words what it shows."""

    name: str
    source: str  # data URI
    alt: str
    caption: str


class Block(NamedTuple):
    """A piece of a section; the template knows each kind: text, missing, table, figures, code, facts, terms, references."""

    kind: str
    content: object
    title: str = ""
    folded: bool = False


@dataclass
class Page:
    """A run and where its figures and tables go; both are written as they are shown."""

    run: RunFolder
    drawn: list[str] = field(default_factory=list)

    def draw(self, name: str, figure: Figure, *, alt: str, caption: str = "") -> Drawn:
        """Write the figure's files and give it to the page."""
        self.drawn.append(name)
        return Drawn(name, figures.save_figure(figure, self.run.path / "figures" / name), alt, caption)

    def table(self, table: Table, *, folded: bool = False) -> Block:
        """Write the table's files and give it to the page."""
        write_table(table, self.run.path / "tables")
        return Block("table", table, table.caption, folded)

    def missing(self, what: str, how: str = "") -> Block:
        """A note in the place of what is not there."""
        return Block("missing", (what, how or f"brainage evaluate {self.run.path}"))


class Section(NamedTuple):
    anchor: str
    title: str
    build: Callable[[Page], list[Block]]


def results(page: Page) -> list[Block]:
    """The models side by side, as a table and as dots with intervals."""
    table, every = headline(page.run), all_results(page.run)
    if table is None or every is None:
        return [page.missing("Results: nothing was evaluated yet.")]
    drawn = [_comparison(page, split) for split in TESTS]
    return [
        page.table(table),
        Block("figures", [figure for figure in drawn if figure]),
        page.table(every, folded=True),
    ]


def _comparison(page: Page, split: str) -> Drawn | None:
    run = page.run
    cohort = run.experiment.data.cohort
    names = [model for place, model in models(run) if place == cohort]
    found = [(model, estimate(run, cohort, model, split, *MAE)) for model in names]
    found = [(model, mae) for model, mae in found if mae]
    if not found:
        return None
    rows = pd.DataFrame([[model_name(model), mae.estimate, mae.low, mae.high] for model, mae in found])
    rows.columns = pd.Index(["name", "estimate", "low", "high"])
    guess = mean_predictor(run, cohort, found[0][0], split)
    figure = figures.dots_with_intervals(
        rows, xlabel="MAE (years), 95 % interval", title=f"{SPLIT_NAMES[split].capitalize()}", reference=guess.estimate,
        reference_name="mean predictor", colours=[figures.ACCENT if m == run.model else "#7b8794" for m, _ in found],
    )  # fmt: skip
    spoken = "; ".join(f"{model_name(model)} {mae.estimate:.2f}" for model, mae in found)
    return page.draw(
        f"models_{split}", figure, alt=f"Mean absolute error in years on the {SPLIT_NAMES[split]}: {spoken}."
    )


def errors(page: Page) -> list[Block]:
    """Predicted against chronological age, and the error by age and by site."""
    rows = page.run.evaluated
    if rows is None:
        return [page.missing("Age scatter and errors: there are no predictions of this network yet.")]
    blocks = [
        Block(
            "text", f"One network ({model_name(page.run.model)}, seed {page.run.experiment.seed}); each dot is a scan."
        ),
        Block("figures", [_scatter(page, rows, split) for split in TESTS if (rows["split"] == split).any()]),
    ]
    bands = rows.assign(band=decade(rows["age_years"]))
    absolute, signed = error_by(bands, "band"), error_by(bands, "band", signed=True)
    if len(absolute):
        data = absolute.merge(signed, on=["split", "band", "people"], suffixes=("_mae", "_bias"))
        write_table(_plain_table("error_by_age", "Error by decade of age (years)", data), page.run.path / "tables")
        blocks.append(Block("figures", _age_errors(page, absolute, signed)))
    else:
        blocks.append(Block("text", f"Errors by age are not drawn: no decade has {FEWEST_PEOPLE} people."))
    return blocks + _site_errors(page, rows)


def _scatter(page: Page, rows: pd.DataFrame, split: str) -> Drawn:
    part, run = rows[rows["split"] == split], page.run
    ages, predicted = part["age_years"].to_numpy(float), part["predicted_age_years"].to_numpy(float)
    both = rows[["age_years", "predicted_age_years"]].to_numpy(float)
    mae, most = float(np.abs(predicted - ages).mean()), run.experiment.evaluate.scatter_points
    title = f"{SPLIT_NAMES[split].capitalize()}: n = {len(part)}, MAE {mae:.2f} years"
    limits = (float(both.min()) - 2, float(both.max()) + 2)
    figure = figures.age_scatter(ages, predicted, split=split, most=most, limits=limits, title=title)
    shown = f" {most} of {len(part)} scans are drawn; the MAE is of all." if len(part) > most else ""
    alt = (
        f"Scatter of predicted against chronological age, {SPLIT_NAMES[split]}: {len(part)} scans aged {ages.min():.0f} to "
        f"{ages.max():.0f}, mean absolute error {mae:.2f} years, mean error {np.mean(predicted - ages):+.2f} years."
    )
    return page.draw(f"age_{split}", figure, alt=alt, caption=f"Dashed: predicted age equals chronological age.{shown}")


def _age_errors(page: Page, absolute: pd.DataFrame, signed: pd.DataFrame) -> list[Drawn]:
    caption = f"Decades of {FEWEST_PEOPLE} people or more; 95 % bootstrap interval over people."
    worst = absolute.loc[absolute["estimate"].idxmax()]
    mae = figures.error_by_band(absolute, ylabel="MAE (years)", title="Absolute error by age", zero_line=False)
    bias = figures.error_by_band(
        signed, ylabel="predicted − chronological (years)", title="Signed error by age", zero_line=True
    )
    alt = f"Mean absolute error by decade of age; largest {worst['estimate']:.1f} years at {worst['band']}."
    lowest, highest = (signed.loc[signed["band"].map(_first).eq(f(signed["band"].map(_first))), "estimate"].mean()
                       for f in (min, max))  # fmt: skip
    told = f"Mean signed error by decade of age: {lowest:+.1f} years in the youngest, {highest:+.1f} in the oldest."
    return [
        page.draw("error_by_age", mae, alt=alt, caption=caption),
        page.draw(
            "bias_by_age",
            bias,
            alt=told,
            caption="Above 0: predicted too old. A falling line is regression to the mean.",
        ),
    ]


def _first(band: str) -> int:
    return int(band.split("-")[0])


def _site_errors(page: Page, rows: pd.DataFrame) -> list[Block]:
    if rows["site"].isna().all():
        return [Block("text", "Errors by site are not drawn: the cohort names no sites.")]
    found = error_by(rows, "site").sort_values("estimate", ignore_index=True)
    every = rows["site"].nunique()
    if found.empty:
        return [Block("text", f"Errors by site are not drawn: none of {every} sites has {FEWEST_PEOPLE} people.")]
    write_table(_plain_table("error_by_site", "Error by site (years)", found), page.run.path / "tables")
    largest = found.sort_values("people", ascending=False, kind="stable").head(MOST_SITES_DRAWN).sort_index()
    label = largest["site"].astype(str) + " (" + largest["people"].astype(str) + ")"
    shown = largest.assign(name=label)
    figure = figures.dots_with_intervals(
        shown, xlabel="MAE (years), 95 % interval", title="Absolute error by site (people)",
        colours=[figures.SPLIT_COLOURS[split] for split in shown["split"]],
    )  # fmt: skip
    caption = "Blue: internal test, orange-red: external test."
    if len(shown) < every:
        caption += f" {len(shown)} of {every} sites are drawn: the largest with {FEWEST_PEOPLE} people or more."
    alt = f"Mean absolute error by site, from {found['estimate'].min():.1f} to {found['estimate'].max():.1f} years."
    return [Block("figures", [page.draw("error_by_site", figure, alt=alt, caption=caption)])]


def embedding(page: Page) -> list[Block]:
    """The first two principal components of the main network's embedding, by age and by site."""
    run = page.run
    path = run.embeddings.get(run.label) or run.embeddings.get(run.model)
    if path is None or run.table is None:
        return [page.missing("Embedding map: no scan was embedded with this network yet.")]
    rows = read_table(path).merge(run.table[[*KEY, "site", "age_years", "split"]], on=KEY, how="inner")
    tests = rows["split"].isin(TESTS)
    rows = (rows[tests] if tests.sum() > 2 else rows).reset_index(drop=True)
    if len(rows) < 3:
        return [page.missing("Embedding map: fewer than three embedded scans are in table.parquet.")]
    features = run.experiment.evaluate.features
    points, shares = principal_plane(np.vstack(rows[features].to_list()))
    kept = figures.thin(len(rows), run.experiment.evaluate.scatter_points)
    rows, points = rows.iloc[kept].reset_index(drop=True), points[kept]
    labels = (f"component 1 ({100 * shares[0]:.0f} % of variance)", f"component 2 ({100 * shares[1]:.0f} %)")
    r = [abs(float(np.corrcoef(points[:, i], rows["age_years"])[0, 1])) for i in (0, 1)]
    by_age = figures.map_by_age(points, rows["age_years"].to_numpy(float), labels=labels, title="By age")
    by_site = figures.map_by_site(points, rows["site"], labels=labels, title="By site")
    where = f"{len(rows)} test scans" if tests.sum() > 2 else f"{len(rows)} scans"
    alt = f"Two principal components of the embedding of {where}, coloured by age; correlation with age {r[0]:.2f} and {r[1]:.2f}."
    told = f"The same map of {where}, coloured by the {rows['site'].nunique()} sites."
    caption = f"Principal components of the {features} embedding, {where}. |r| with age: {r[0]:.2f} and {r[1]:.2f}."
    return [
        Block("figures", [
            page.draw("map_age", by_age, alt=alt, caption=caption),
            page.draw("map_site", by_site, alt=told, caption="Sites that mix at equal age mean that little of the scanner is left."),
        ])
    ]  # fmt: skip


def principal_plane(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First two principal components [n, 2] and their shares of the variance; signs fixed by the largest loading."""
    centred = vectors.astype(float) - vectors.mean(axis=0, dtype=float)
    values, axes = np.linalg.eigh(centred.T @ centred)
    order = np.argsort(values)[::-1][:2]
    axes = axes[:, order] * np.sign(axes[np.abs(axes[:, order]).argmax(axis=0), order])
    if axes.shape[1] < 2:
        axes = np.column_stack([axes, np.zeros(len(axes))])
    shares = np.clip(values[order], 0, None) / max(float(values.clip(min=0).sum()), 1e-12)
    return centred @ axes, np.append(shares, [0.0, 0.0])[:2]


CURVES = [
    (
        "loss",
        "Loss",
        "loss",
        {"train": "train/loss", "validation": "val/loss", "collapse value": "health/collapse_loss"},
    ),
    ("validation", "Validation", "MAE (years)", {"validation MAE": "val/mae_years"}),
    ("effective_rank", "Effective rank of the embedding", "directions", {"effective rank": "health/effective_rank"}),
    ("geometry", "Alignment and uniformity", "", {"alignment": "health/alignment", "uniformity": "health/uniformity"}),
    ("learning_rate", "Learning rate", "learning rate", {"learning rate": "train/lr"}),
    ("speed", "Speed", "images / s", {"images / s": "speed/images_per_s"}),
    ("loader_wait", "Waiting for data", "share of the step", {"share of the step": "speed/loader_wait_share"}),
]


def training(page: Page) -> list[Block]:
    """Curves of the journal."""
    run = page.run
    if run.journal.empty:
        return [
            page.missing(
                "Training curves: there is no journal (metrics.jsonl).", f"brainage pretrain {run.path / 'config.yaml'}"
            )
        ]
    drawn = []
    for name, title, ylabel, wanted in CURVES:
        series = {label: run.series(metric) for label, metric in wanted.items()}
        series = {label: points.dropna() for label, points in series.items() if points["value"].notna().any()}
        if not series:
            continue
        figure = figures.curve(series, title=title, ylabel=ylabel)
        ends = ", ".join(f"{label} {points['value'].iloc[-1]:.4g}" for label, points in series.items())
        drawn.append(page.draw(f"training_{name}", figure, alt=f"{title} over the training steps; at the end: {ends}."))
    line = run.health.get("last")
    said = [Block("text", f"Health at the last look: {line}.")] if line else []
    note = "Dashed: the loss of an embedding that gives everyone the same answer (collapse value)."
    return [Block("figures", drawn), Block("text", note), *said]


def cohort(page: Page) -> list[Block]:
    """Who was used, and what was left out."""
    run = page.run
    if run.table is None:
        return [page.missing("Cohort: there is no table.parquet.", f"brainage pretrain {run.path / 'config.yaml'}")]
    table, blocks = run.table, [page.table(split_sheet(run.table))]
    ages = {split: table.loc[table["split"] == split, "age_years"].dropna().to_numpy(float) for split in SPLITS}
    if any(map(len, ages.values())):
        spoken = "; ".join(f"{SPLIT_NAMES[s]} {np.median(a):.0f}" for s, a in ages.items() if len(a))
        figure = figures.age_histogram(ages)
        blocks.append(
            Block(
                "figures", [page.draw("ages", figure, alt=f"Ages by split in five-year bins; medians: {spoken} years.")]
            )
        )
    blocks.append(page.table(site_sheet(table), folded=table["site"].nunique() > 8))
    if run.dropped is None:
        blocks.append(Block("text", "There is no dropped.tsv: scans left out, if any, were not recorded."))
    elif run.dropped.empty:
        blocks.append(Block("text", "No scan of the cohort was left out."))
    else:
        blocks.append(page.table(dropped_sheet(run.dropped)))
    return blocks


def _plain_table(name: str, caption: str, data: pd.DataFrame) -> Table:
    shown = data.map(lambda value: f"{value:.2f}" if isinstance(value, float) else str(value))
    shown.columns = pd.Index([name.replace("_", " ") for name in data.columns])
    return Table(name, caption, data, shown.replace(SPLIT_NAMES), text_columns=2)


def said(page: Page) -> list[Block]:
    """The methods in words."""
    return [Block("text", paragraph) for paragraph in methods(page.run)]


def again(page: Page) -> list[Block]:
    """All that is needed to repeat the run."""
    box = reproduce(page.run)
    return [
        Block("code", box.command, "Command"),
        Block("facts", box.facts, "Versions and seeds"),
        Block("code", box.config, "Resolved configuration", folded=True),
    ]


def words(page: Page) -> list[Block]:
    """Glossary and references."""
    return [Block("terms", GLOSSARY, "Glossary"), Block("references", REFERENCES, "References")]


SECTIONS = [
    Section("results", "Results", results),
    Section("errors", "Where it errs", errors),
    Section("embedding", "Embedding map", embedding),
    Section("training", "Training", training),
    Section("cohort", "Cohort", cohort),
    Section("methods", "Methods", said),
    Section("reproduce", "Reproduce", again),
    Section("words", "Glossary and references", words),
]
