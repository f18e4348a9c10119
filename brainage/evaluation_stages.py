"""The stages after training: evaluate on the own cohort or another, embed, report, tell MLflow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from brainage.config import (
    DataConfig,
    Experiment,
    apply_overrides,
    differing_keys,
    nearest,
    network_name,
    read_experiment,
    with_values,
)
from brainage.data.source import ScanSource
from brainage.downstream.results import read_results
from brainage.errors import BrainageError, CheckpointError, ConfigError
from brainage.experiment_files import find_shipped, read_yaml
from brainage.headline import at_a_glance, mlflow_metrics, print_headline, print_tasks
from brainage.runtime import choose_device, console, set_threads, warn
from brainage.runtime.files import write_atomically
from brainage.runtime.ranks import is_first
from brainage.stages import prepare_together

if TYPE_CHECKING:  # imports torch
    from brainage.pretraining.folder import Pretrained


OF_ONE_COHORT = (
    "root", "store", "split", "external_sites", "internal_fraction", "limit", "options", "members", "overlap",
    "exclude", "external_cohorts", "stratify", "folds", "fold", "folds_by", "balance", "weights",
)  # fmt: skip


def evaluate_stage(experiment: Experiment, data: ScanSource, folder: Path) -> pd.DataFrame:
    """Embeddings, probes, baselines, results, report; prints the headline table."""
    from brainage.downstream.evaluate import evaluate

    results = evaluate(experiment, data, folder)
    report_stage(experiment, folder, results)
    return results


def evaluate_on_stage(experiment: Experiment, data: ScanSource, run: Path, name: str) -> pd.DataFrame:
    """A finished run judged on another cohort; the run's report gets a chapter, MLflow a run under the run's own."""
    from brainage.downstream.evaluate_cohort import evaluate_cohort, evaluation_folder
    from brainage.reporting.report import write_report
    from brainage.tracking import MlflowRun, start_mlflow_run

    results = evaluate_cohort(experiment, data, run, name)
    report = write_report(run)
    print_tasks(results, experiment.loss.name, experiment.evaluate.correction)
    folder = evaluation_folder(run, name)
    above = MlflowRun(run, experiment.tracking).run_id
    tags = {"stage": "evaluate", "cohort": experiment.data.cohort, **({"mlflow.parentRunId": above} if above else {})}
    label = f"{network_name(experiment)} on {name}"
    with start_mlflow_run(experiment.tracking, run_folder=folder, run_name=label, params={}, tags=tags) as mlflow:
        mlflow.log_results(mlflow_metrics(results, experiment.loss.name))
        shared = ("results.csv", "evaluation.yaml", "figures", "tables")
        mlflow.log_artifacts([name for name in shared if (folder / name).exists()])
        mlflow.finish()
    with start_mlflow_run(experiment.tracking, run_folder=run, run_name=network_name(experiment), params={}) as mlflow:
        glance = at_a_glance(results, experiment.loss.name)
        mlflow.log_results({f"{metric} on {name}": value for metric, value in glance.items()})
        mlflow.log_artifacts(["report.html"])
        mlflow.finish()
    console().print(f"results: {folder / 'results.csv'}\nreport: {report}", soft_wrap=True)
    return results


def report_stage(experiment: Experiment, folder: Path, results: pd.DataFrame) -> None:
    """Write the report, print the headline, and hand results and figures to MLflow (no rows of single persons)."""
    from brainage.reporting.report import write_report
    from brainage.tracking import start_mlflow_run

    report = write_report(folder)
    print_headline(results, experiment.loss.name)
    print_tasks(results, experiment.loss.name, experiment.evaluate.correction)
    mlflow = start_mlflow_run(experiment.tracking, run_folder=folder, run_name=network_name(experiment), params={})
    mlflow.log_results(mlflow_metrics(results, experiment.loss.name) | at_a_glance(results, experiment.loss.name))
    persons = ["predictions.parquet"] if experiment.tracking.log_individuals else []
    shared = (
        *persons,
        "report.html",
        "results.csv",
        "config.yaml",
        "evaluate.yaml",
        "finetune.yaml",
        "environment.json",
        "figures",
        "tables",
    )
    mlflow.log_artifacts([name for name in shared if (folder / name).exists()])
    mlflow.finish()
    mlflow.close()
    console().print(f"report: {report}", soft_wrap=True)


def embed_stage(experiment: Experiment, data: ScanSource, folder: Path, out: Path) -> None:
    """Embed every scan of a cohort with a finished run's encoder; processes that srun or torchrun started share it."""
    from brainage.data.splits import was_seen
    from brainage.downstream.embed import embed
    from brainage.downstream.features import write_embeddings
    from brainage.pretraining.checkpoint import load_module

    if out.is_dir():
        raise ConfigError(f"--out {out}: a folder; expected the name of a parquet file to write")
    checkpoint = finished_run(folder).checkpoint
    module, payload = load_module(checkpoint)
    module.contract.refuse_other(data.contract, str(checkpoint))  # before hours of preparation
    prepare_together(experiment, data)
    set_threads(experiment.trainer.threads)
    device = str(choose_device(experiment.trainer.accelerator))
    found = embed(module, data, np.arange(len(data.table)), device=device)
    if not is_first():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    seen = was_seen(data.table, payload.seen, payload.salt)
    write_embeddings(out, found.keys, found.trunk, found.head, seen=seen)
    known = f", {int(seen.sum())} of them of people whom the encoder was trained on" if seen.any() else ""
    console().print(f"{len(found.keys)} scans embedded{known}: {out}", soft_wrap=True)


def evaluation_experiment(run: Path, on: str, overrides: list[str]) -> tuple[Experiment, str]:
    """`evaluation_of` the experiment in a run folder."""
    return evaluation_of(_saved(run), on, overrides, str(run))


def evaluation_of(saved: Experiment, on: str, overrides: list[str], run: str) -> tuple[Experiment, str]:
    """The experiment `saved` of `run` with the cohort of an evaluation file (a shipped name, or YAML) in place of its
    own, and the name of that evaluation. ConfigError on keys that would be another training."""
    path = find_shipped("evaluate", on, "evaluation")
    values = read_yaml(path)
    known = ["description", "data", "evaluate", "finetune"]
    for key in values:
        if key not in known:
            raise ConfigError(f"{path}: {key!r}: an evaluation has {', '.join(known)}{nearest(key, known)}")
    given = apply_overrides(with_values(_of_another_cohort(saved), values, str(path)), overrides)
    _refuse_other_training(run, saved, given, other_cohort=True)
    return given, path.stem


def run_experiment(folder: Path, overrides: list[str], *, other_cohort: bool = False) -> Experiment:
    """The experiment of a run folder with overrides that leave its training as it is (`data.*` may change for another
    cohort). Raises ConfigError naming the first key that would make it another training.
    """
    saved = _saved(folder)
    given = apply_overrides(saved, overrides)
    changed = given
    if given.data.cohort != saved.data.cohort:
        changed = apply_overrides(_of_another_cohort(saved), overrides)
    _refuse_other_training(folder, saved, changed, other_cohort=other_cohort)
    return changed


def _saved(folder: Path) -> Experiment:
    config = folder / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{folder}: config.yaml not found; expected a run folder, as printed by `brainage pretrain`")
    return read_experiment(config)


def _of_another_cohort(saved: Experiment) -> Experiment:
    """Without the keys that say where a cohort lies and how it is split: those of one are not another's."""
    fresh = DataConfig()
    own = dataclasses.replace(saved.data, **{key: getattr(fresh, key) for key in OF_ONE_COHORT})
    return dataclasses.replace(saved, data=own)


def _refuse_other_training(folder: Path | str, saved: Experiment, changed: Experiment, *, other_cohort: bool) -> None:
    for key, (before, after) in differing_keys(saved, changed).items():
        of_the_encoder = not key.startswith("data.") or key == "data.intensity"
        if of_the_encoder or not other_cohort:
            raise ConfigError(f"{key}={after}: {folder} was trained with {before!r}; pretrain another run instead")


def runs_in(folder: Path) -> list[Path]:
    """The folder itself where it is a run, else the finished runs in it."""
    if (folder / "config.yaml").is_file() or not folder.is_dir():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/finished.json"))
    if not found:
        raise ConfigError(f"{folder}: expected a run folder, or a folder with finished runs in it; found neither")
    return found


def evaluate_runs(run: Path, evaluate_one: Callable[[Path], None], *, dry_run: bool = False) -> dict[Path, str]:
    """Evaluate a run, or every finished run of a folder; gives the reasons of those that failed, stopping no other."""
    runs, failed = runs_in(run), {}
    for folder in runs:
        try:
            evaluate_one(folder)
        except BrainageError as error:
            if len(runs) == 1:
                raise
            warn(f"{folder}: {error}")
            failed[folder] = str(error)
    if len(runs) > 1 and not dry_run:
        summarise_runs(run, runs)
    return failed


def summarise_runs(folder: Path, runs: list[Path]) -> pd.DataFrame:
    """One row a run with what one looks at first, written to `runs.csv` and printed; evaluations on other cohorts
    included."""
    rows = []
    for run in runs:
        model = read_experiment(run / "config.yaml").loss.name
        found: dict[str, object] = {"run": run.name}
        for file in [run / "results.csv", *sorted(run.glob("evaluations/*/results.csv"))]:
            if file.is_file():
                on = "" if file.parent == run else f" on {file.parent.name}"
                found |= {metric + on: value for metric, value in at_a_glance(read_results(file), model).items()}
        rows.append(found)
    table = pd.DataFrame(rows)
    write_atomically(folder / "runs.csv", lambda draft: table.to_csv(draft, index=False))
    console().print(table.to_string(index=False, float_format="{:.3f}".format, na_rep=""), markup=False)
    console().print(f"runs: {folder / 'runs.csv'}", soft_wrap=True)
    return table


def finished_run(folder: Path) -> Pretrained:
    """The finished run of a folder; CheckpointError saying what is missing otherwise."""
    from brainage.pretraining.folder import read_finished

    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; expected a run folder, as printed by `brainage pretrain`")
    finished = read_finished(folder)
    if finished is None:
        raise CheckpointError(f"{folder}: not finished; `brainage pretrain` continues it")
    return finished
