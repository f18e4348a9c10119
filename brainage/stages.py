"""The stages behind the commands: each starts from the files of the one before and says what it did."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from brainage.config import Experiment, from_plain, load_overrides, read_experiment, run_folder, to_plain
from brainage.data.source import ScanSource
from brainage.errors import CheckpointError, ConfigError
from brainage.runtime import available_memory_gib, console, print_panel, warn


def print_plan(experiment: Experiment, data: ScanSource, *, network: bool) -> None:
    """People, batches, disk; with `network` also memory and time, measured on two samples."""
    lines = data.describe()
    train_scans = int((data.planned()["split"] == "train").sum())
    if network and train_scans >= 2:
        from brainage.pretraining.plan import training_cost

        cost = training_cost(experiment, data.contract, train_scans)
        networks = experiment.evaluate.seeds * (1 + len(set(experiment.evaluate.losses) - {experiment.loss.name}))
        lines["batches"] = (
            f"{cost.steps_per_epoch} an epoch of {cost.samples_a_step} samples, {cost.steps} steps in all"
        )
        lines["memory"] = f"about {cost.memory_gib:.1f} GiB to train, {available_memory_gib():.1f} GiB free on this machine"
        lines["time"] = f"about {_duration(cost.seconds)} a network"
        if networks > 1:
            lines["time"] += f", {networks} networks with those it is compared with"
        lines["run"] = str(run_folder(experiment))
    print_panel(experiment.name, lines)


def prepare_stage(data: ScanSource) -> None:
    """Fill or open the store; says how many scans were left out."""
    with progress_bar("prepare", len(data.planned())) as advance:
        store = data.prepare(advance)
    console().print(f"store {store.path}: {len(store)} scans, {store.nbytes / 2**30:.2f} GiB", soft_wrap=True)
    if len(store.dropped):
        first = store.dropped.iloc[0]
        warn(
            f"{len(store.dropped)} scans left out, listed with their reasons in {store.path / 'dropped.tsv'}; "
            f"the first: {first['participant_id']} ({first['reason']})"
        )


def pretrain_stage(experiment: Experiment, data: ScanSource) -> Path:
    """Train, continue or find finished; gives the run folder."""
    from brainage.pretraining.run import pretrain

    run = pretrain(experiment, data)
    if experiment.trainer.fast_dev_run:
        console().print("fast_dev_run: one train and one validation batch went through; nothing was kept")
    elif run.trained:
        console().print(f"trained in {_duration(run.seconds)}: {run.folder}", soft_wrap=True)
    else:
        console().print(f"finished before, nothing to train: {run.folder}", soft_wrap=True)
    return run.folder


def evaluate_stage(experiment: Experiment, data: ScanSource, folder: Path) -> Path:
    """Embeddings, probes, baselines, results, report; prints the headline table."""
    from brainage.downstream.evaluate import evaluate
    from brainage.reporting.report import write_report

    results = evaluate(experiment, data, folder)
    report = write_report(folder)
    print_headline(results)
    deliver(experiment, folder, results)
    console().print(f"report: {report}", soft_wrap=True)
    return report


def embed_stage(data: ScanSource, folder: Path, out: Path) -> None:
    """Embed every scan of a cohort with a finished run's encoder."""
    import numpy as np

    from brainage.downstream.embed import embed
    from brainage.downstream.features import write_embeddings
    from brainage.pretraining.checkpoint import last_good, load_module

    path, _ = last_good(folder)
    assert path is not None
    module, _ = load_module(path)
    module.contract.refuse_other(data.contract, str(path))  # before hours of preparation
    prepare_stage(data)
    write_embeddings(embed(module, data, np.arange(len(data.table))), out)
    console().print(f"{len(data.table)} scans embedded: {out}", soft_wrap=True)


def run_experiment(folder: Path, overrides: list[str]) -> Experiment:
    """The experiment of a run folder with `data.*` and `evaluate.*` overrides.

    Raises ConfigError for overrides that would make it another training.
    """
    config = folder / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"run folder {folder}: config.yaml not found; expected a folder that `brainage pretrain` printed")
    saved = read_experiment(config)
    refused = [word for word in overrides if not word.startswith(("data.", "evaluate.", "tracking."))]
    if refused:
        raise ConfigError(f"override {refused[0]!r}: a finished run takes data.*, evaluate.* and tracking.* only")
    return load_overrides(from_plain(to_plain(saved)), overrides)


def finished_run(folder: Path) -> Path:
    """The folder, if its training has finished; CheckpointError saying what is missing otherwise."""
    from brainage.pretraining.run import FINISHED

    if not (folder / FINISHED).is_file():
        raise CheckpointError(f"{folder}: not finished; `brainage pretrain` continues it")
    return folder


def serve_ui(uri: str, host: str, port: int) -> int:
    """MLflow's web server in the foreground, without its telemetry and job workers."""
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", host, "--port", str(port)]
    console().print(f"MLflow on {uri}: http://{host}:{port} (Ctrl-C ends it)", soft_wrap=True)
    return subprocess.run(command, env={**os.environ, **settings}, check=False).returncode
