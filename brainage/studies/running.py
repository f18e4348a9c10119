"""Running the cells of a study: one after the other, or one by its number, as a job array does."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from brainage.config import Experiment, network_name
from brainage.data.source import ScanSource
from brainage.data.splits import write_split
from brainage.errors import BrainageError, ConfigError
from brainage.runtime import console, warn
from brainage.runtime.files import write_atomically
from brainage.runtime.ranks import is_first
from brainage.stages import prepare_stage, progress_bar
from brainage.studies.cells import FINISHED_STATE, Cell, cohort_folder, is_evaluated, kept_evaluation, state_of
from brainage.studies.elsewhere import is_judged, judge_cell, judged_experiment
from brainage.studies.study import Form, SimulatedCohort
from brainage.studies.subsets import subset_split

OpenCohort = Callable[[Experiment], ScanSource]
WriteCohort = Callable[..., Path]  # (out, subjects=, seed=, spacing_mm=, on_progress=, **options)


def prepare_study(form: Form, cells: Sequence[Cell], open_cohort: OpenCohort, layouts: dict[str, WriteCohort]) -> None:
    """What all cells read: the simulated cohort of a small study, every store, every split file of a subset.

    Run it before a job array, whose processes would otherwise all want to write the same store.
    """
    simulate_all(form, layouts)
    prepared: set[str] = set()
    for cell in cells:
        if cell.subset:
            write_subset(cell, open_cohort)
        for experiment in (cell.whole, *([judged_experiment(cell)] if cell.on else [])):
            where = repr(dataclasses.replace(experiment.data, batch_size=0))
            if where not in prepared:
                prepare_stage(open_cohort(experiment))
                prepared.add(where)


def simulate_all(form: Form, layouts: dict[str, WriteCohort]) -> None:
    """The cohorts of a small study; nothing of a full one."""
    for cohort in filter(None, (form.simulate, form.simulate_on)):
        simulate(cohort, layouts)


def simulate(cohort: SimulatedCohort, layouts: dict[str, WriteCohort]) -> Path:
    """Write the cohort of a small study, finish writing it, or find it written."""
    if cohort.layout not in layouts:
        raise ConfigError(f"small.simulate.layout={cohort.layout}: unknown; known: {', '.join(layouts)}")
    out = cohort_folder(cohort)
    with progress_bar("simulate", cohort.subjects) as advance:
        layouts[cohort.layout](
            out, subjects=cohort.subjects, seed=cohort.seed, spacing_mm=cohort.spacing_mm, on_progress=advance,
            **cohort.options,
        )  # fmt: skip
    return out


def write_subset(cell: Cell, open_cohort: OpenCohort) -> Path:
    """The split file of a cell that trains on a part of the people; the same for all seeds."""
    path = Path(cell.experiment.data.split)
    if not path.is_file():
        whole = open_cohort(cell.whole)
        table, split = whole.planned(), whole.split
        write_split(subset_split(table, split, cell.subset, seed=cell.whole.data.split_seed), path)
    return path


def run_cells(cells: Sequence[Cell], open_cohort: OpenCohort) -> dict[str, str]:
    """Train and evaluate what is not finished; gives the reason of each cell that failed, which stops no other."""
    failed = {}
    for number, cell in enumerate(cells, start=1):
        if state_of(cell) == FINISHED_STATE:
            console().print(f"[{number}/{len(cells)}] {cell.name}: finished before", markup=False)
            continue
        console().print(f"[{number}/{len(cells)}] {cell.name}: {cell.folder}", markup=False, soft_wrap=True)
        try:
            run_cell(cell, open_cohort)
        except Exception as error:  # whatever it is, the other cells are worth having
            known = isinstance(error, BrainageError)
            failed[cell.name] = str(error) if known else f"{type(error).__name__}: {error}"
            _note_failure(cell, failed[cell.name] + ("" if known else "\n\n" + traceback.format_exc()))
            warn(f"{cell.name} failed: {failed[cell.name]}")
        else:
            cell.failure.unlink(missing_ok=True)
    return failed


def run_cell(cell: Cell, open_cohort: OpenCohort) -> None:
    """Prepare, pre-train, evaluate, judge on the other cohort; each finds finished what is."""
    from brainage.pretraining.run import pretrain

    if cell.subset:
        write_subset(cell, open_cohort)
    data = open_cohort(cell.experiment)
    run = pretrain(cell.experiment, data, label=cell.name)
    if not is_first():  # of several processes that trained it together
        return
    if not is_evaluated(cell):
        _evaluate(cell, data, run.folder)
    if not is_judged(cell):
        judge_cell(cell, data, open_cohort)


def _evaluate(cell: Cell, data: ScanSource, folder: Path) -> None:
    """On the own cohort, with the baselines that other studies asked for."""
    from brainage.downstream.evaluate import evaluate

    asked = cell.experiment.evaluate
    before = kept_evaluation(cell).get("baselines", [])  # of another study that has this cell too
    baselines = list(dict.fromkeys([*asked.baselines, *before]))
    wider = dataclasses.replace(cell.experiment, evaluate=dataclasses.replace(asked, baselines=baselines))
    results = evaluate(wider, data, folder)
    _tell_mlflow(wider, folder, results)


def print_cells(cells: Sequence[Cell]) -> None:
    """Number, arm, seed, state and folder of every cell."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("cell", "arm", "seed", "state", "folder"):
        table.add_column(name, no_wrap=name != "folder", overflow="fold")
    for number, cell in enumerate(cells):
        table.add_row(str(number), cell.arm, str(cell.seed), state_of(cell), str(cell.folder))
    console().print(table)


def _note_failure(cell: Cell, text: str) -> None:
    cell.failure.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cell.failure, lambda draft: draft.write_text(text + "\n", encoding="utf-8"))


def _tell_mlflow(experiment: Experiment, folder: Path, results: object) -> None:
    """The scores of a cell's network beside its curves."""
    from brainage.headline import mlflow_metrics
    from brainage.tracking import start_mlflow_run

    run = start_mlflow_run(experiment.tracking, run_folder=folder, run_name=network_name(experiment), params={})
    run.log_results(mlflow_metrics(results, experiment.loss.name))
    run.finish()
    run.close()
