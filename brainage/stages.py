"""The stages behind the commands: each starts from the files of the one before and says what it did."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from brainage.config import (
    DataConfig,
    Experiment,
    apply_overrides,
    differing_keys,
    nearest,
    network_name,
    read_experiment,
    run_folder,
)
from brainage.data.reasons import left_out_lines
from brainage.data.source import ScanSource
from brainage.errors import CheckpointError, ConfigError
from brainage.runtime import choose_device, console, print_panel, set_threads, warn

if TYPE_CHECKING:  # imports torch
    from brainage.pretraining.folder import Pretrained


OF_ONE_COHORT = (
    "root", "store", "split", "external_sites", "internal_fraction", "limit", "options", "members", "overlap",
    "exclude", "external_cohorts", "stratify", "folds", "fold", "folds_by", "balance", "weights",
)  # fmt: skip


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


def split_stage(data: Any, out: Path) -> None:
    """Write split.tsv, or every fold with an index, to a folder."""
    from brainage.data.folds import write_folds
    from brainage.data.splits import write_split

    if data.config.folds:
        index = write_folds(data.planned(), out, data.folds())
        console().print(index.to_string(index=False), markup=False)
    else:
        write_split(data.split, out / "split.tsv")
        counts = data.split["split"].value_counts()
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        console().print(f"{out / 'split.tsv'}: {said}; hash {data.split_hash}", soft_wrap=True)


def part_of(text: str) -> tuple[int, int]:
    """
    >>> part_of("2/8")
    (2, 8)
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--shard {text}: expected i/n with i from 1 to n, such as 2/8")
    return int(found[1]), int(found[2])


def shard_stage(data: Any, part: tuple[int, int]) -> None:
    """Prepare part i of n and say which parts are missing."""
    with progress_bar(f"prepare {part[0]}/{part[1]}", len(data.planned())) as advance:
        states = data.prepare_shard(part, advance)
    for path, state in zip(data.member_paths(), states, strict=True):
        missing = ", ".join(map(str, state.missing)) or "none; `brainage prepare` without --shard merges them"
        console().print(f"store {path}: part {part[0]} of {part[1]} done; missing: {missing}", soft_wrap=True)


def inspect_stage(data: ScanSource) -> Path:
    """Quality of every scan, thumbnails of the flagged ones, and a data sheet, in `<store>.sheet`."""
    from brainage.imaging.quality import unjudged, write_quality
    from brainage.reporting.data_sheet import write_data_sheet
    from brainage.reporting.thumbnails import write_thumbnails

    store = data.store
    with progress_bar("quality", 2 * len(store)) as advance:
        quality = write_quality(store, on_progress=advance)
    folder = store.path.with_name(store.path.name + ".sheet")
    page = write_data_sheet(folder, data.table, data.dropped, quality)
    pictures = write_thumbnails(store, quality, folder)
    for line in unjudged(quality):
        warn(line)
    flagged = quality["qc_flags"].notna()
    console().print(f"{int(flagged.sum())} of {len(quality)} scans flagged; none is left out but by data.exclude")
    for flag, count in quality.loc[flagged, "qc_flags"].str.split("[;, ]+").explode().value_counts().items():
        console().print(f"  {flag}: {count}")
    if pictures:
        console().print(f"thumbnails: {', '.join(str(path) for path in pictures)}", soft_wrap=True)
    console().print(f"data sheet: {page}", soft_wrap=True)
    return page


def withdraw_stage(lists: list[Path], cohort: str, stores: list[Path], runs: list[Path]) -> None:
    """Remove people from stores and run folders, and print what changed and what cannot be undone."""
    from brainage.data.withdrawal import withdraw, withdrawn_people

    if not stores and not runs:
        raise ConfigError("withdraw: expected --store DIR or --run DIR, where people are to be taken out")
    people = withdrawn_people(lists, cohort)
    with progress_bar("withdraw", 1) as advance:
        changes = withdraw(people, stores=stores, runs=runs, on_progress=advance)
    for change in changes:
        console().print(f"{change.path}: {change.note}", soft_wrap=True, markup=False)
    if not changes:
        console().print(f"nothing held any of the {len(people)} people on these lists")


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
