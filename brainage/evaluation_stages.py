"""The stages after training: evaluate on the own cohort or another, embed, report, tell MLflow."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from brainage.config import DataConfig, Experiment, apply_overrides, differing_keys, network_name, read_experiment
from brainage.data.source import ScanSource
from brainage.errors import CheckpointError, ConfigError
from brainage.runtime import choose_device, console, set_threads
from brainage.stages import prepare_stage

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


def report_stage(experiment: Experiment, folder: Path, results: pd.DataFrame) -> None:
    """Write the report, print the headline, and hand results and figures to MLflow (no rows of single persons)."""
    from brainage.reporting.report import write_report
    from brainage.tracking import start_mlflow_run

    report = write_report(folder)
    print_headline(results, experiment.loss.name)
    mlflow = start_mlflow_run(experiment.tracking, run_folder=folder, run_name=network_name(experiment), params={})
    mlflow.log_results(mlflow_metrics(results, experiment.loss.name))
    persons = ["predictions.parquet"] if experiment.tracking.log_individuals else []
    shared = (
        *persons,
        "report.html",
        "results.csv",
        "config.yaml",
        "evaluate.yaml",
        "environment.json",
        "figures",
        "tables",
    )
    mlflow.log_artifacts([name for name in shared if (folder / name).exists()])
    mlflow.finish()
    mlflow.close()
    console().print(f"report: {report}", soft_wrap=True)


def mlflow_metrics(results: pd.DataFrame, model: str) -> dict[str, float]:
    """`task/split/metric` -> estimate of the run's own network, whole splits only."""
    rows = results[(results["run"] == model) & results["task"].isin(["age", "site", "challenge"])]
    rows = rows[rows["estimate"].notna()]
    return {f"{r.task}/{r.split}/{r.metric}".replace("+", "_"): float(r.estimate) for r in rows.itertuples()}


def print_headline(results: pd.DataFrame, model: str) -> None:
    """Models side by side: MAE on seen and unseen sites with intervals, site accuracy, challenge score."""
    columns = {
        "MAE internal": ("test_internal", "age", "mae_years"),
        "MAE external": ("test_external", "age", "mae_years"),
        "site BAcc": ("test_internal", "site", "balanced_accuracy"),
        "L_c": ("test_internal+test_external", "challenge", "challenge_score"),
    }
    rows = results[~results["run"].str.contains(r"-seed\d+$")]
    title = "Years, 95 % intervals over people; site and L_c: lower is better"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("model", no_wrap=True)
    for title, (split, task, metric) in columns.items():
        n = rows[(rows["split"] == split) & (rows["task"] == task) & (rows["metric"] == metric)]["n"].max()
        table.add_column(f"{title}\nn {n}", justify="right", no_wrap=True)
    names = list(dict.fromkeys(rows["run"]))
    for name in sorted(names, key=lambda name: (name != model, name in ("mean_predictor", "chance"))):
        cells = [_cell(rows[rows["run"] == name], *where) for where in columns.values()]
        if any(cells):
            table.add_row(name, *cells)
    console().print(table)


def _cell(rows: pd.DataFrame, split: str, task: str, metric: str) -> str:
    """Estimate over its interval, empty where the model has no such number."""
    found = rows[(rows["split"] == split) & (rows["task"] == task) & (rows["metric"] == metric)]
    if found.empty:
        return ""
    row = found.iloc[0]
    interval = "" if np.isnan(row["low"]) else f"\n[{row['low']:.2f}, {row['high']:.2f}]"
    return "-" if np.isnan(row["estimate"]) else f"{row['estimate']:.2f}{interval}"


def embed_stage(experiment: Experiment, data: ScanSource, folder: Path, out: Path) -> None:
    """Embed every scan of a cohort with a finished run's encoder."""
    from brainage.data.splits import was_seen
    from brainage.downstream.embed import embed
    from brainage.downstream.features import write_embeddings
    from brainage.pretraining.checkpoint import load_module

    if out.is_dir():
        raise ConfigError(f"--out {out}: a folder; expected the name of a parquet file to write")
    checkpoint = finished_run(folder).checkpoint
    module, payload = load_module(checkpoint)
    module.contract.refuse_other(data.contract, str(checkpoint))  # before hours of preparation
    prepare_stage(data)
    set_threads(experiment.trainer.threads)
    device = str(choose_device(experiment.trainer.accelerator))
    frame = embed(module, data, np.arange(len(data.table)), device=device)
    out.parent.mkdir(parents=True, exist_ok=True)
    seen = was_seen(data.table, payload.seen, payload.salt)
    write_embeddings(out, frame, np.stack(list(frame["trunk"])), np.stack(list(frame["head"])), seen=seen)
    known = f", {int(seen.sum())} of them of people whom the encoder was trained on" if seen.any() else ""
    console().print(f"{len(frame)} scans embedded{known}: {out}", soft_wrap=True)


def run_experiment(folder: Path, overrides: list[str], *, other_cohort: bool = False) -> Experiment:
    """The experiment of a run folder with overrides that leave its training as it is (`data.*` may change for another
    cohort). Raises ConfigError naming the first key that would make it another training.
    """
    config = folder / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{folder}: config.yaml not found; expected a run folder, as printed by `brainage pretrain`")
    saved = read_experiment(config)
    given = apply_overrides(saved, overrides)
    changed = given
    if given.data.cohort != saved.data.cohort:  # the keys that say where a cohort lies and how it is split are not its
        fresh = DataConfig()
        own = dataclasses.replace(saved.data, **{key: getattr(fresh, key) for key in OF_ONE_COHORT})
        changed = apply_overrides(dataclasses.replace(saved, data=own), overrides)
    for key, (before, after) in differing_keys(saved, changed).items():
        of_the_encoder = not key.startswith("data.") or key == "data.intensity"
        if of_the_encoder or not other_cohort:
            raise ConfigError(f"{key}={after}: {folder} was trained with {before!r}; pretrain another run instead")
    return changed


def finished_run(folder: Path) -> Pretrained:
    """The finished run of a folder; CheckpointError saying what is missing otherwise."""
    from brainage.pretraining.folder import read_finished

    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; expected a run folder, as printed by `brainage pretrain`")
    finished = read_finished(folder)
    if finished is None:
        raise CheckpointError(f"{folder}: not finished; `brainage pretrain` continues it")
    return finished
