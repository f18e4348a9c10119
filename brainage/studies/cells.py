"""The cells of a study, one network each: an arm with one seed, as a complete experiment with a folder of its own.

Cells are numbered seed by seed, so that the first ones are already a comparison of all arms. What lies in a folder says
how far its cell is; nothing else is remembered. Folders are shared by all studies: an arm that two of them have is
trained once.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainage.config import Experiment, load_experiment, run_folder, training_hash
from brainage.errors import ConfigError
from brainage.experiment_files import find_shipped, read_yaml
from brainage.studies.elsewhere import is_judged
from brainage.studies.study import SUBSET, Form, SimulatedCohort
from brainage.studies.subsets import Subset

FINISHED = "finished.json"  # as in brainage.pretraining.folder, which loads torch
FINISHED_STATE = "finished"
FAILED = "failed"
BASELINES = "evaluate.baselines"
ONE_NETWORK = ("evaluate.losses=[]", "evaluate.seeds=1")
# Keys of data that say who is in which split: a file that says it for everybody replaces them.
SPLIT_KEYS = (
    "external_sites", "external_cohorts", "internal_fraction", "folds", "fold", "folds_by", "stratify", "val_fraction",
)  # fmt: skip


ON = "on."  # before words of the command line that are about the other cohort


@dataclass(frozen=True)
class Elsewhere:
    """The other cohort that cells are judged on: a shipped evaluation or a file, and overrides of it."""

    evaluation: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return find_shipped("evaluate", self.evaluation, "evaluation").stem


@dataclass(frozen=True)
class Cell:
    """`whole` is the experiment before a subset of its people is taken; the same object where none is."""

    arm: str
    seed: int
    experiment: Experiment
    whole: Experiment
    subset: Subset
    on: Elsewhere | None = None  # None: on no other cohort

    @property
    def name(self) -> str:
        return f"{self.arm}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        return run_folder(self.experiment)

    @property
    def failure(self) -> Path:
        """Why it failed when it was last tried; not there when it did not."""
        return self.folder.with_name(f"{self.folder.name}.failed.txt")


def cells_of(form: Form, overrides: Sequence[str] = (), *, source: str = "") -> list[Cell]:
    """Every cell of a study, seed by seed; `overrides` are words of the command line, for all arms, or with `on.` in
    front for the evaluation on the other cohort.

    Raises ConfigError naming the arm when its experiment is not valid, asks for more than one network, or is the same
    as another arm's.
    """
    source = source or f"study {form.name}"
    for word in overrides:
        if word.startswith("seed="):
            raise ConfigError(f"{word}: the study has seeds of its own ({form.seeds}); copy its file to change them")
    on = _elsewhere(form, [word for word in overrides if word.startswith(ON)], source)
    overrides = [word for word in overrides if not word.startswith(ON)]
    arms = {name: _arm_experiment(form, name, overrides, source) for name in form.arms}
    same: dict[str, str] = {}
    for name, (experiment, subset) in arms.items():
        identity = f"{training_hash(experiment)} {subset} {_protocol(_evaluation(experiment))}"
        if identity in same:
            raise ConfigError(f"{source}: arms {same[identity]} and {name} are the same experiment; change one of them")
        same[identity] = name
    cells = [_cell(form, name, seed, *arms[name], overrides) for seed in form.seeds for name in form.arms]
    return [dataclasses.replace(cell, on=on) for cell in cells]


def state_of(cell: Cell) -> str:
    """finished | trained (not evaluated as asked) | started | failed | missing"""
    if is_evaluated(cell) and is_judged(cell):
        return FINISHED_STATE
    if cell.failure.is_file():
        return FAILED
    if (cell.folder / FINISHED).is_file():
        return "trained"
    return "started" if (cell.folder / "config.yaml").is_file() else "missing"


def is_evaluated(cell: Cell) -> bool:
    """Whether the folder holds what the cell asks for; more baselines than it asks for do no harm."""
    files = [cell.folder / name for name in (FINISHED, "results.csv", "predictions.parquet")]
    kept = kept_evaluation(cell)
    if not kept or not all(file.is_file() for file in files):
        return False
    asked = _evaluation(cell.experiment)
    return _protocol(kept) == _protocol(asked) and set(asked["baselines"]) <= set(kept["baselines"])


def kept_evaluation(cell: Cell) -> dict[str, Any]:
    """The keys of `evaluate` that the folder was last evaluated with, none where it was not."""
    file = cell.folder / "evaluate.yaml"
    return read_yaml(file) if file.is_file() else {}


def cohort_folder(cohort: SimulatedCohort) -> Path:
    """Where the simulated cohort of a small study lies."""
    further = "".join(f"_{key}{value}" for key, value in cohort.options.items())
    name = f"{cohort.layout}_{cohort.subjects}_{cohort.spacing_mm:g}mm_seed{cohort.seed}{further}"
    return Path("demo_data") / "studies" / re.sub(r"[^\w.]+", "-", name).strip("-")


def _elsewhere(form: Form, words: Sequence[str], source: str) -> Elsewhere | None:
    if not form.evaluate_on:
        if words:
            raise ConfigError(f"{words[0]}: {source} has no evaluate_on, so that there is no other cohort")
        return None
    own = [f"{key}={json.dumps(value)}" for key, value in form.evaluate_on_overrides.items()]
    root = [f"data.root={json.dumps(str(cohort_folder(form.simulate_on)))}"] if form.simulate_on else []
    found = Elsewhere(form.evaluate_on, (*own, *root, *(word.removeprefix(ON) for word in words)))
    try:
        assert found.name
    except ConfigError as error:
        raise ConfigError(f"{source}: evaluate_on: {error}") from error
    return found


def _arm_experiment(form: Form, arm: str, overrides: Sequence[str], source: str) -> tuple[Experiment, Subset]:
    """What all seeds of an arm have in common."""
    changes = form.arms[arm]
    source = f"{source}: arm {arm}"
    subset = Subset.of({k.removeprefix(SUBSET): v for k, v in changes.items() if k.startswith(SUBSET)}, source)
    own = {**form.overrides, **{k: v for k, v in changes.items() if not k.startswith(SUBSET)}}
    if form.simulate:
        own["data.root"] = str(cohort_folder(form.simulate))
    words = [f"{key}={json.dumps(value)}" for key, value in {BASELINES: form.baselines, **own}.items()]
    try:
        found = load_experiment(form.base, [*ONE_NETWORK, *words, *overrides])
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    if found.evaluate.losses or found.evaluate.seeds != 1:
        raise ConfigError(f"{source}: evaluate.losses and evaluate.seeds: a cell is one network; add an arm")
    if subset and "val" in found.evaluate.fit_splits:
        raise ConfigError(
            f"{source}: evaluate.fit_splits {found.evaluate.fit_splits}: expected [train], since the people whom a "
            "subset leaves out are in val"
        )
    runs = Path(found.runs) / "studies" / "cells"
    runs = runs / cohort_folder(form.simulate).name if form.simulate else runs
    return dataclasses.replace(found, runs=str(runs)), subset


def _cell(form: Form, arm: str, seed: int, experiment: Experiment, subset: Subset, overrides: Sequence[str]) -> Cell:
    """One seed of an arm; baselines that nobody asked for by name are scored in one cell only."""
    asked = BASELINES in {**form.overrides, **form.arms[arm]} or any(w.startswith(BASELINES) for w in overrides)
    evaluate = experiment.evaluate
    if not asked and (arm, seed) != (form.reference, form.seeds[0]):
        evaluate = dataclasses.replace(evaluate, baselines=[])
    whole = dataclasses.replace(experiment, seed=seed, evaluate=evaluate)
    return Cell(arm, seed, _on_subset(whole, subset) if subset else whole, whole, subset)


def _on_subset(experiment: Experiment, subset: Subset) -> Experiment:
    """The experiment with the split file of a subset in place of all keys that say who is in which split."""
    name = f"{experiment.data.cohort}_{subset.label}_{training_hash(_as_data(experiment))}.tsv"
    fresh = type(experiment.data)()
    defaults = {key: getattr(fresh, key) for key in SPLIT_KEYS}
    split = str(Path(experiment.runs) / "splits" / name)
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **defaults, split=split))


def _as_data(experiment: Experiment) -> Experiment:
    """An experiment of which only the data is kept: what a split depends on."""
    return Experiment(data=experiment.data)


def _evaluation(experiment: Experiment) -> dict[str, Any]:
    return dataclasses.asdict(experiment.evaluate)


def _protocol(evaluate: dict[str, Any]) -> dict[str, Any]:
    """What decides the numbers: without who is scored beside, and what is only drawn or chained."""
    apart = ("baselines", "losses", "seeds", "after_training", "scatter_points")
    return {key: value for key, value in evaluate.items() if key not in apart}
