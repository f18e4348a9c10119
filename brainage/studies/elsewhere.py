"""The other cohort of a study: what every trained cell is judged on, and age error against AUC over all cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from brainage.config import DataConfig, Experiment, read_experiment
from brainage.data.source import ScanSource
from brainage.downstream.mae_auc import POINT_COLUMNS, correlate, points, read_points, step_of
from brainage.downstream.results import RESULT_COLUMNS, combine
from brainage.errors import ConfigError
from brainage.stages import prepare_stage

if TYPE_CHECKING:
    from brainage.studies.cells import Cell

PREDICTOR = "probe"
LAST = "last"  # group of rows that are about finished networks alone
WHERE_IT_LIES = ("root", "store", "workers", "prepare_workers", "resident", "batch_size")  # of data: of no consequence


class Points(NamedTuple):
    """`points`: POINT_COLUMNS and arm, last (the finished network); `rows`: their correlations as results."""

    points: pd.DataFrame
    rows: pd.DataFrame


def judged_experiment(cell: Cell) -> Experiment:
    """The experiment of a cell with the other cohort; ConfigError on an evaluation that does not fit it."""
    from brainage.evaluation_stages import evaluation_of

    assert cell.on
    try:
        return evaluation_of(cell.experiment, cell.on.evaluation, list(cell.on.words), cell.name)[0]
    except ConfigError as error:
        raise ConfigError(f"evaluate_on {cell.on.evaluation}: {error}") from error


def judged_folder(cell: Cell) -> Path:
    """Where the evaluation of a cell on the other cohort lies."""
    assert cell.on
    return cell.folder / "evaluations" / cell.on.name  # as in evaluate_cohort, which loads torch


def is_judged(cell: Cell) -> bool:
    """Whether a cell was judged on the other cohort as asked, all its checkpoints too; True where none is asked."""
    if not cell.on:
        return True
    folder = judged_folder(cell)
    if not all((folder / name).is_file() for name in ("evaluation.yaml", "results.csv")):
        return False
    kept = read_experiment(folder / "evaluation.yaml")
    if _scores_checkpoints(kept) and not _steps(cell) <= _steps_scored(cell):
        return False
    return _protocol(kept) == _protocol(judged_experiment(cell))


def judge_cell(cell: Cell, data: ScanSource, open_cohort: Callable[[Experiment], ScanSource]) -> None:
    """Judge a trained and evaluated cell on the other cohort: everything of its last network, and a point of each
    checkpoint that it kept. `data`: the cell's own scans."""
    from brainage.downstream.checkpoint_scores import score_checkpoints
    from brainage.downstream.evaluate_cohort import evaluate_cohort

    assert cell.on
    asked = judged_experiment(cell)
    other = open_cohort(asked)
    prepare_stage(other)
    evaluate_cohort(asked, other, cell.folder, cell.on.name)
    if _scores_checkpoints(asked):
        score_checkpoints(cell.experiment, data, asked, other, cell.folder, name=cell.on.name)


def gather_points(cells: Sequence[Cell]) -> Points:
    """Points of all finished cells, pair by pair, and their correlations, of all points and of last networks alone.

    Empty frames where there is no other cohort. A training moves both numbers over its steps: a correlation over
    checkpoints mixes that road with what sets trainings apart.
    """
    none = Points(pd.DataFrame(columns=[*POINT_COLUMNS, "arm", "last"]), pd.DataFrame(columns=RESULT_COLUMNS))
    if not cells or not cells[0].on:
        return none
    asked = judged_experiment(cells[0])
    if not _scores_checkpoints(asked):
        return none
    arms = {cell.folder.name: cell.arm for cell in cells}
    found, rows = [], []
    for pair in dict.fromkeys(asked.evaluate.pairs):
        told = points([cell.folder for cell in cells], pair=pair, predictor=PREDICTOR, on=cells[0].on.name)
        told = told[told["run"].isin(arms)]
        last = told["step"] == told.groupby("run")["step"].transform("max")
        found.append(told.assign(arm=told["run"].map(arms), last=last.astype(bool)))
        how: dict[str, Any] = {"pair": pair, "predictor": PREDICTOR, "resamples": asked.evaluate.bootstrap}
        rows += [correlate(told, **how), correlate(told[last], **how, group=LAST)]
    return Points(pd.concat(found, ignore_index=True), combine(rows))


def _scores_checkpoints(experiment: Experiment) -> bool:
    return "diagnosis" in experiment.evaluate.tasks and PREDICTOR in experiment.evaluate.predictors


def _protocol(experiment: Experiment) -> tuple[object, ...]:
    """What decides the numbers."""
    fresh = DataConfig()
    data = dataclasses.replace(experiment.data, **{name: getattr(fresh, name) for name in WHERE_IT_LIES})
    return data, experiment.evaluate, experiment.finetune


def _steps(cell: Cell) -> set[int]:
    return {step_of(path) for path in (cell.folder / "checkpoints").glob("step_*.ckpt")}


def _steps_scored(cell: Cell) -> set[int]:
    assert cell.on
    found = read_points(cell.folder)
    return set(found.loc[found["evaluation"] == cell.on.name, "step"])
