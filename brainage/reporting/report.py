"""report.html: one self-contained page about a run, written from the files of its run folder alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from brainage import __version__
from brainage.data.table import SPLITS, write_atomically
from brainage.downstream.results import CHANCE, INTERNAL, SCORED
from brainage.reporting.evaluations import read_evaluations
from brainage.reporting.findings import findings
from brainage.reporting.methods import encoder_name
from brainage.reporting.page import Page, delete_others
from brainage.reporting.run_folder import RunFolder, read_run
from brainage.reporting.sections import sections
from brainage.reporting.style import SPLIT_NAMES
from brainage.reporting.tables import (
    BOTH_TESTS,
    CHALLENGE,
    MAE,
    SITE_BACC,
    Cell,
    Estimate,
    estimate,
    mean_predictor,
    model_name,
)

MATHEMATICS = {
    "L^exp": "L<sup>exp</sup>",
    "L^thr": "L<sup>thr</sup>",
    "L_c": "L<sub>c</sub>",
    "BAcc^0.3": "BAcc<sup>0.3</sup>",
}


def write_report(run_folder: Path, study: Path | None = None, *, pdf: bool = True) -> Path:
    """Write report.html, figures/*.svg, .png and .pdf, and tables/*.csv and .tex into a run folder; gives the page's
    path. Figures and tables of another cohort go into its folder in RUN/evaluations; `study` is a study's folder, whose
    results are shown beside the run's. Without `pdf` figures are SVG and PNG only.

    Files of these kinds that lie in figures and tables of the run folder and of RUN/evaluations/* and were not written
    this time are deleted: they are of an earlier report, whose numbers no longer hold.

    What is not there yet (journal, results, predictions, embeddings) is named in its place with the command that makes
    it. Raises DataError when the folder or its config.yaml is not there, or a file in it is not readable.
    """
    run = read_run(run_folder)
    evaluations = read_evaluations(run)
    page = Page(run, evaluations, study)
    canvases = [page, *(evaluation.canvas for evaluation in evaluations)]
    for canvas in canvases:
        canvas.pdf = pdf
    built = [(section, section.build(page)) for section in sections(page)]
    text = page_environment().get_template("report.html.j2").render(
        title=_title(run), run=run, facts=_facts(run), tiles=_tiles(run), findings=findings(run, evaluations),
        sections=built, checked=_checked(run), version=__version__,
    )  # fmt: skip
    path = run.path / "report.html"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    delete_others(canvases)
    return path


def prose(text: Any) -> Markup:
    """Escaped text with the names of losses and scores set as mathematics and `code` between backticks.

    >>> prose("L^exp < 1")
    Markup('L<sup>exp</sup> &lt; 1')
    """
    safe = str(escape(str(text)))
    for plain, markup in MATHEMATICS.items():
        safe = safe.replace(plain, markup)
    safe = re.sub(r"(?<![\w.-])-(?=\d)", "−", safe.replace(" %", "\N{NO-BREAK SPACE}%"))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", safe))


def sentence(text: str) -> str:
    """The text with a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def page_environment() -> jinja2.Environment:
    """Templates with the filters that they need."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("brainage.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    environment.filters["cell"] = lambda value: value if isinstance(value, Cell) else Cell(str(value))
    return environment


def _title(run: RunFolder) -> str:
    data = run.experiment.data
    return f"{model_name(run.model)} on {data.cohort} ({data.modality})"


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    experiment = run.experiment
    facts = [
        ("Experiment", experiment.name),
        ("Loss", model_name(run.model)),
        ("Encoder", sentence(encoder_name(experiment))),
        ("Cohort", f"{experiment.data.cohort}, {experiment.data.modality}"),
    ]
    if run.table is not None:
        counts = run.table["split"].value_counts()
        facts += [(SPLIT_NAMES[split].capitalize(), f"{counts[split]} scans") for split in SPLITS if split in counts]
    return facts


def _checked(run: RunFolder) -> str:
    """What the absence of warnings rests on."""
    found = {"splits": run.table is not None, "training": not run.journal.empty, "results": run.evaluated is not None}
    done, absent = ([name for name, there in found.items() if there is wanted] for wanted in (True, False))
    text = f"No warning from the checks of {', '.join(done)}." if done else ""
    return f"{text} Not checked, since not there yet: {', '.join(absent)}." if absent else text


def _tiles(run: RunFolder) -> list[tuple[str, str, list[str]]]:
    """Name, number and what to compare it with, of the four numbers that a reader looks for first."""
    cohort, tiles = run.experiment.data.cohort, []
    for split in SCORED:
        mae, guess = estimate(run, cohort, run.model, split, *MAE), mean_predictor(run, cohort, split)
        if mae:
            against = [mae.interval(2), _seeds(mae, 2), f"mean predictor {guess.estimate:.2f}" if guess else ""]
            tiles.append((f"MAE, {SPLIT_NAMES[split]}", f"{mae.estimate:.2f} years", against))
    bacc = estimate(run, cohort, run.model, INTERNAL, *SITE_BACC)
    chance = estimate(run, cohort, CHANCE, INTERNAL, *SITE_BACC)
    if bacc:
        guessed = f"chance {100 * chance.estimate:.1f} %" if chance else ""
        against = [bacc.interval(1, 100), _seeds(bacc, 1, 100), guessed]
        tiles.append(("Site BAcc, lower is better", f"{100 * bacc.estimate:.1f} %", against))
    score = estimate(run, cohort, run.model, BOTH_TESTS, *CHALLENGE)
    if score:
        against = [score.interval(2), _seeds(score, 2), "BAcc^0.3 × external MAE"]
        tiles.append(("L_c, lower is better", f"{score.estimate:.2f}", against))
    return tiles


def _seeds(found: Estimate, digits: int, scale: float = 1) -> str:
    return f"{found.seeds} seeds, {found.seeds_line(digits, scale)}" if found.seeds > 1 else ""
