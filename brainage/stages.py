"""The stages behind the commands: each starts from the files of the one before and says what it did."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from brainage.config import Experiment, nearest, run_folder
from brainage.data.reasons import left_out_lines
from brainage.data.source import ScanSource
from brainage.errors import ConfigError
from brainage.runtime import console, print_panel, warn


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, one line at the end elsewhere; gives the function to call with (done, total)."""
    out = console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def keywords_of(
    function: Callable[..., Any], words: list[str], source: str, *, given: Iterable[str] = ()
) -> dict[str, Any]:
    """`key=value` words as further keywords of a function beside those `given`, values as YAML.

    Raises ConfigError on a key that the function does not have.

    >>> def write(out, *, subjects, form="merge", visits=2): ...
    >>> keywords_of(write, ["visits=3"], "--with")
    {'visits': 3}
    """
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.default is not p.empty and p.name not in given]
    values = {}
    for word in words:
        key, found, value = word.partition("=")
        if not found or key not in known:
            raise ConfigError(f"{source}: {word!r}: expected key=value{nearest(key, known)}")
        values[key] = OmegaConf.select(OmegaConf.from_dotlist([f"value={value or chr(34) * 2}"]), "value")
    return values


def print_plan(experiment: Experiment, data: ScanSource, *, network: bool) -> None:
    """People, batches, disk; with `network` also memory and time, measured on two samples."""
    lines = data.describe()
    train_scans = int((data.planned()["split"] == "train").sum())
    if network and train_scans >= 2:
        from brainage.pretraining.plan import training_cost

        cost = training_cost(experiment, data.contract, train_scans)
        lines["batches"] = (
            f"{cost.steps_per_epoch} an epoch of {cost.samples_a_step} samples, {cost.steps} steps in all"
        )
        lines["memory"] = (
            f"about {cost.memory_gib:.1f} GiB to train in fp32, {cost.free_gib:.1f} GiB free on {cost.device}"
        )
        lines["time"] = f"about {_duration(max(cost.seconds, 10))} a network"  # starting takes some seconds itself
        lines["run"] = str(run_folder(experiment))
    losses = dict.fromkeys([experiment.loss.name, *experiment.evaluate.losses])
    if len(losses) * experiment.evaluate.seeds > 1:
        seeds = experiment.evaluate.seeds
        lines["compared"] = f"{', '.join(losses)} x {seeds} seeds; evaluation trains what is missing"
    print_panel(experiment.name, lines)


def prepare_stage(data: ScanSource) -> None:
    """Fill or open the store; says how many scans were left out."""
    with progress_bar("prepare", len(data.planned())) as advance:
        store = data.prepare(advance)
    console().print(f"store {store.path}: {len(store)} scans, {store.nbytes / 2**30:.2f} GiB", soft_wrap=True)
    if len(store.dropped):
        for line in left_out_lines(store.dropped, store.path / "dropped.tsv"):
            warn(line)


def prepare_together(experiment: Experiment, data: ScanSource) -> None:
    """Prepare; of several processes that srun or torchrun started the first one, before the others open what is there.

    A process that will itself start one a device is alone until then.
    """
    from brainage.pretraining.group import first_prepares, join
    from brainage.runtime.ranks import launched

    if launched():
        join(experiment)
    first_prepares(data, prepare_stage)


def refuse_untrainable(experiment: Experiment, data: ScanSource) -> None:
    """Raise now what training would refuse after hours of preparation: too few scans, a network or views that do not
    fit the samples, a device or precision that this machine does not have."""
    from brainage.augment import check_augment
    from brainage.data.sampling import StepBatches, scan_weights
    from brainage.pretraining.checkpoint import new_module
    from brainage.pretraining.group import check_ranks
    from brainage.pretraining.trainer import build_trainer, guard

    planned = data.planned()
    trained, config = planned[planned["split"] == "train"], experiment.data
    weights = scan_weights(trained, balance=config.balance, cohort_weights=config.weights)
    batches = StepBatches(len(trained), config.batch_size, experiment.seed, weights=weights)
    check_ranks(experiment, batches.batch_size)
    check_augment(experiment.augment, data.contract)
    guard(experiment, data.contract)
    new_module(experiment, data.contract)
    build_trainer(experiment, [])


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


def serve_ui(uri: str, host: str, port: int) -> int:
    """MLflow's web server in the foreground, without its telemetry and job workers."""
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", host, "--port", str(port)]
    console().print(f"MLflow on {uri}: http://{host}:{port} (Ctrl-C ends it)", soft_wrap=True)
    return subprocess.run(server, env={**os.environ, **environment}, check=False).returncode


def _duration(seconds: float) -> str:
    """
    >>> _duration(42), _duration(600), _duration(200_000)
    ('42 s', '10 min', '55.6 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
