"""The report's sections. To add one: write a function from Page to blocks and add a row to SECTIONS."""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainage.downstream.results import SCORED
from brainage.reporting import figures
from brainage.reporting.age_errors import age_errors
from brainage.reporting.checklist import answered
from brainage.reporting.cohort_sections import cohort_section
from brainage.reporting.data_sheet import data_sheet
from brainage.reporting.embedding_map import embedding_map
from brainage.reporting.methods import methods
from brainage.reporting.page import Block, Drawn, Page, Section
from brainage.reporting.references import glossary, references
from brainage.reporting.reproduce import reproduce
from brainage.reporting.scaling_section import scaling
from brainage.reporting.style import ACCENT, SPLIT_NAMES
from brainage.reporting.tables import (
    MAE,
    all_results,
    differences,
    estimate,
    headline,
    mean_predictor,
    model_name,
    models,
)
from brainage.reporting.task_methods import task_methods


def results(page: Page) -> list[Block]:
    """The models side by side, as a table and as dots with intervals."""
    table, every = headline(page.run), all_results(page.run)
    if table is None or every is None:
        return [page.missing("Results: nothing was evaluated yet.")]
    drawn = [figure for figure in (_comparison(page, split) for split in SCORED) if figure]
    paired = differences(page.run)
    return [
        page.table(table),
        Block("figures", drawn),
        *([page.table(paired)] if paired else []),
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
    guess = mean_predictor(run, cohort, split)
    figure = figures.dots_with_intervals(
        rows, xlabel="MAE (years), 95 % interval", title=f"{SPLIT_NAMES[split].capitalize()}", reference=guess.estimate,
        reference_name="mean predictor", colours=[ACCENT if m == run.model else "#7b8794" for m, _ in found],
    )  # fmt: skip
    spoken = "; ".join(f"{model_name(model)} {mae.estimate:.2f}" for model, mae in found)
    return page.draw(
        f"models_{split}", figure, alt=f"Mean absolute error in years on the {SPLIT_NAMES[split]}: {spoken}."
    )


CURVES = [  # name, title, axis, journal metrics by label, axis from zero
    ("loss", "Loss", "", {"train": "train/loss", "val": "val/loss", "collapse value": "health/collapse_loss"}, False),
    ("validation", "Validation", "MAE (years)", {"val": "val/mae_years"}, False),
    ("effective_rank", "Effective rank of the embedding", "", {"effective rank": "health/effective_rank"}, True),
    ("geometry", "Geometry", "", {"alignment": "health/alignment", "uniformity": "health/uniformity"}, False),
    ("learning_rate", "Learning rate", "", {"learning rate": "train/lr"}, True),
    ("speed", "Speed", "images / s", {"images / s": "speed/images_per_s"}, True),
    ("loader_wait", "Waiting for data", "share of the step", {"share of the step": "speed/loader_wait_share"}, True),
]


def training(page: Page) -> list[Block]:
    """Curves of the journal."""
    run = page.run
    if run.journal.empty:
        how = f"brainage pretrain {run.path / 'config.yaml'} name={run.experiment.name}"
        return [page.missing("Training curves: there is no journal (metrics.jsonl).", how)]
    drawn = []
    for name, title, ylabel, wanted, from_zero in CURVES:
        every = {label: run.series(metric) for label, metric in wanted.items()}
        series = {label: points for label, points in every.items() if np.isfinite(points["value"]).any()}
        if not series:
            continue
        figure = figures.curve(series, title=title, ylabel=ylabel, from_zero=from_zero)
        ends = ", ".join(f"{label} {points['value'].iloc[-1]:.4g}" for label, points in series.items())
        caption = "Dashed: the loss of giving everyone the same embedding." if "collapse value" in series else ""
        alt = f"{title} over the training steps; at the end: {ends}."
        drawn.append(page.draw(f"training_{name}", figure, alt=alt, caption=caption))
    line = run.health.get("last")
    return [Block("figures", drawn), *([Block("text", f"Health at the last look: {line}")] if line else [])]


def cohort(page: Page) -> list[Block]:
    """Who was used, what was left out, and how good the scans are: the cohort's data sheet."""
    run = page.run
    if run.table is None:
        how = f"brainage pretrain {run.path / 'config.yaml'} name={run.experiment.name}"
        return [page.missing("Cohort: there is no table.parquet.", how)]
    return data_sheet(page, run.table, run.dropped, run.quality)


def said(page: Page) -> list[Block]:
    """The methods in words."""
    return [Block("text", paragraph) for paragraph in [*methods(page.run), *task_methods(page.evaluations)]]


def again(page: Page) -> list[Block]:
    """All that is needed to repeat the run."""
    box = reproduce(page.run, page.evaluations)
    told = "RUN stands for the run's folder, DATA for that of the cohort as downloaded."
    return [
        Block("code", "\n".join([box.command, *box.evaluated]), f"Command{'s' * bool(box.evaluated)}"),
        *([Block("text", told)] if box.evaluated else []),
        Block("facts", box.facts, "Versions and seeds"),
        Block("code", box.config, "Resolved configuration", folded=True),
    ]


def checklist(page: Page) -> list[Block]:
    """What a paper must report and where it is here; to be built after the others."""
    there = {section.anchor: section.title for section in SECTIONS if _shows(page, section.anchor)}
    lead = (
        "After TRIPOD+AI (Collins et al. 2024), in other words: where each topic is answered on this page, and "
        "what only "
        "the authors can add. It is no proof of good reporting."
    )
    return [Block("text", lead), Block("checklist", answered(there, page.parts))]


def _shows(page: Page, anchor: str) -> bool:
    """Whether a section has what it is about and not a note that it is missing."""
    run = page.run
    needs = {
        "results": run.results is not None, "errors": run.evaluated is not None, "cohort": run.table is not None,
        "training": not run.journal.empty,
    }  # fmt: skip
    return needs.get(anchor, True)


def words(page: Page) -> list[Block]:
    """Glossary and references."""
    return [
        Block("terms", glossary(page.evaluations), "Glossary"),
        Block("references", references(page.run, page.evaluations), "References"),
    ]


def sections(page: Page) -> list[Section]:
    """The sections of a run's page: SECTIONS, with one for each cohort judged after the run's own errors."""
    judged = [cohort_section(evaluation) for evaluation in page.evaluations]
    size = [Section("scaling", "Study", scaling)] if page.study else []
    place = [section.anchor for section in SECTIONS].index("errors") + 1
    return [*SECTIONS[:place], *judged, *size, *SECTIONS[place:]]


SECTIONS = [
    Section("results", "Results", results),
    Section("errors", "Where it errs", age_errors),
    Section("embedding", "Embedding map", embedding_map),
    Section("training", "Training", training),
    Section("cohort", "Cohort", cohort),
    Section("methods", "Methods", said),
    Section("reproduce", "Reproduce", again),
    Section("checklist", "Checklist", checklist),
    Section("words", "Glossary and references", words),
]
