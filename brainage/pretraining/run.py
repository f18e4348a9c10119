"""One pre-training run: from an experiment and its scans to a run folder with a finished checkpoint."""

from __future__ import annotations

import fcntl
import json
import logging
import shlex
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from brainage.augment import check_augment
from brainage.config import Experiment, flatten, network_name, run_folder, save_experiment
from brainage.data.source import ScanSource
from brainage.data.splits import age_histogram, seen_people, write_split
from brainage.data.table import write_table, write_tsv
from brainage.errors import CheckpointError, ConfigError, TrainingStopped
from brainage.imaging.contract import InputContract
from brainage.pretraining import callbacks as watching
from brainage.pretraining.checkpoint import (
    PAYLOAD,
    AtomicCheckpointIO,
    Payload,
    checkpoints,
    last_good,
    load_checkpoint,
    new_module,
    refuse_other_run,
)
from brainage.pretraining.health import HealthWatch
from brainage.pretraining.module import PretrainingModule
from brainage.pretraining.supervised import SupervisedModule
from brainage.runtime import (
    choose_device,
    environment,
    git_state,
    guard_precision,
    print_panel,
    seed_everything,
    set_threads,
    warn,
    write_json_atomic,
)
from brainage.tracking import MetricJournal, MlflowRun, start_mlflow_run

PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
FINISHED = "finished.json"


@dataclass(frozen=True)
class Pretrained:
    """A finished run."""

    folder: Path
    checkpoint: Path
    trained: bool  # False: it was finished before
    seconds: float


def pretrain(
    experiment: Experiment, data: ScanSource, *, label: str = "pretrain", parent: Path | None = None
) -> Pretrained:
    """Train, or continue, or find finished: the run folder follows from the training configuration alone.

    `parent` is the folder of the run that this network is compared with; MLflow shows it below that one.
    Raises TrainingStopped when the run collapsed, turned NaN or stalled, CheckpointError when the folder holds another
    run, ConfigError when another process is training it or the device cannot do what is asked.
    """
    if experiment.trainer.fast_dev_run:
        return _fast_dev_run(experiment, data)
    folder = run_folder(experiment)
    if experiment.checkpoint.resume == "never" and folder.exists():
        with _only_process(folder):
            _move_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_process(folder):
        finished = _finished(folder, experiment, data)
        if finished is not None:
            return finished
        start = time.perf_counter()
        checkpoint = _train(folder, experiment, data, label, parent)
        seconds = time.perf_counter() - start
        write_json_atomic(
            folder / FINISHED,
            {"checkpoint": checkpoint.name, "split_hash": data.split_hash, "seconds": round(seconds, 1)},
        )
        return Pretrained(folder, checkpoint, trained=True, seconds=seconds)


def build_module(experiment: Experiment, data: ScanSource) -> PretrainingModule:
    """A fresh module for these scans: weights by the seed, input and age scales by the train set."""
    check_augment(experiment.augment, data.contract)
    seed_everything(experiment.seed)
    data.seed = experiment.seed
    module = new_module(experiment, data.contract, steps_per_epoch=len(data.train_dataloader()))
    rows = data.rows("train")
    module.normaliser.fit(data.store.arrays, rows)
    if isinstance(module, SupervisedModule):
        module.fit_ages(data.table["age_years"].to_numpy()[rows])
    if experiment.trainer.compile:
        module.compile_encoder()
    return module


def build_trainer(experiment: Experiment, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    """The Lightning trainer of an experiment; everything it would write by itself is switched off."""
    trainer, optim = experiment.trainer, experiment.optim
    if trainer.devices > 1:
        raise ConfigError(
            f"trainer.devices={trainer.devices}: this version trains on one device; a contrastive loss over several "
            "needs the batch of all of them, which is not there yet"
        )
    device = choose_device(trainer.accelerator)
    set_threads(trainer.threads)
    _quieten_lightning()
    return L.Trainer(
        max_epochs=trainer.epochs,
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=1,
        precision=PRECISION[trainer.precision],  # type: ignore[arg-type]
        gradient_clip_val=optim.clip_norm or None,
        check_val_every_n_epoch=trainer.validate_every_epochs,
        deterministic="warn" if trainer.deterministic else None,
        benchmark=not trainer.deterministic,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        **options,
    )


def guard(experiment: Experiment, contract: InputContract) -> None:
    """Refuse a precision that this device computes wrongly. On a GPU the whole first batch is tried: the known fault
    (pytorch#163539) shows at large inputs only."""
    device = choose_device(experiment.trainer.accelerator)
    if device.type == "cuda" and contract.kind == "volume":
        samples = experiment.data.batch_size * experiment.augment.views
        guard_precision(experiment.trainer.precision, device, (samples, *contract.shape))
    else:
        guard_precision(experiment.trainer.precision, device)


def _train(folder: Path, experiment: Experiment, data: ScanSource, label: str, parent: Path | None) -> Path:
    resume = _resume_from(folder, experiment, data)
    module = build_module(experiment, data)
    _write_inputs(folder, experiment, data)  # a refused run leaves the folder as it was
    with (
        MetricJournal(folder / "metrics.jsonl") as journal,
        _start_mlflow(folder, experiment, data, parent) as mlflow,  # marks a run that raises as failed or killed
    ):
        recorder = watching.Recorder(journal, experiment.health.every_steps, data.loader_wait_s)
        health = watching.Health(
            HealthWatch(experiment.health, supervised=isinstance(module, SupervisedModule)),
            recorder, experiment.health.every_steps,
        )  # fmt: skip
        keeper = watching.Keeper(
            folder, _payload(experiment, data), mlflow, recorder, experiment.checkpoint.every_steps,
            experiment.checkpoint.keep,
        )  # fmt: skip
        watchers: list[L.Callback] = [recorder, health, keeper]  # the step that stops a run is journalled too
        if experiment.trainer.progress:
            watchers.append(watching.ProgressLine(recorder, health, module.total_steps, label))
        trainer = build_trainer(experiment, watchers)
        guard(experiment, data.contract)
        print_panel(f"{label} {experiment.name}", start_up(experiment, data, module, folder, resume))
        try:
            trainer.fit(module, datamodule=data, ckpt_path=resume)  # type: ignore[arg-type]
        except TrainingStopped as stopped:
            _record_health(folder, health, "stopped", str(stopped))
            raise
        _record_health(folder, health, "ok", "")
        mlflow.finish()
    return checkpoints(folder)[0]


def start_up(
    experiment: Experiment, data: ScanSource, module: PretrainingModule, folder: Path, resume: Path | None
) -> dict[str, str]:
    """Lines of the start-up panel: cohort, batch arithmetic, network, device, addresses."""
    config, rows = experiment, data.rows("train")
    parameters = sum(p.numel() for p in module.parameters())
    batch, views = min(config.data.batch_size, len(rows)), config.augment.views
    counts = data.table["split"].value_counts()
    return {
        "scans": ", ".join(f"{split} {count}" for split, count in counts.items()),
        "sites": f"{data.table['site'].nunique()} ({data.table['site'].iloc[rows].nunique()} in train)",
        "batch": f"{batch} scans x {views} views = {batch * views} samples; {module.steps_per_epoch} steps an epoch, "
                 f"{module.total_steps} in all",
        "loss": f"{config.loss.name}, {config.loss.kernel} of {config.loss.sigma_years:g} years",
        "network": f"{config.encoder.name} x {config.encoder.width:g}, {parameters / 1e6:.2f} M parameters",
        "device": f"{choose_device(config.trainer.accelerator)}, {config.trainer.precision}, "
                  f"{torch.get_num_threads()} CPU threads, resident {config.data.resident}",
        "run": str(folder) + (f", continues from {resume.name}" if resume else ""),
        "tracking": config.tracking.uri if config.tracking.enabled else "off",
    }  # fmt: skip


def _resume_from(folder: Path, experiment: Experiment, data: ScanSource) -> Path | None:
    chosen = experiment.checkpoint.resume
    if chosen == "never":
        return None
    if chosen == "auto":
        path, passed_over = last_good(folder)
        watching.warn_torn(passed_over)
        if path is None and passed_over:
            warn(f"{folder}: no whole checkpoint left; starting from step 0")
    else:
        path = Path(chosen)
    if path is not None:
        payload = Payload.from_dict(load_checkpoint(path)[PAYLOAD], path)
        refuse_other_run(path, payload, experiment, data.split_hash)
        payload.contract.refuse_other(data.contract, str(path))
    return path


def _finished(folder: Path, experiment: Experiment, data: ScanSource) -> Pretrained | None:
    marker = folder / FINISHED
    if not marker.is_file():
        return None
    values = json.loads(marker.read_text(encoding="utf-8"))
    if values["split_hash"] != data.split_hash:
        raise CheckpointError(
            f"{folder}: finished on split {values['split_hash']}, the cohort's is {data.split_hash}: people or splits "
            "changed; copy the experiment under another name or set checkpoint.resume=never"
        )
    path = folder / "checkpoints" / values["checkpoint"]
    load_checkpoint(path)  # torn or deleted: say so now
    return Pretrained(folder, path, trained=False, seconds=values["seconds"])


def _write_inputs(folder: Path, experiment: Experiment, data: ScanSource) -> None:
    save_experiment(experiment, folder / "config.yaml")
    write_table(data.table, folder / "table.parquet")
    write_tsv(data.dropped, folder / "dropped.tsv")
    write_split(data.split, folder / "split.tsv")
    write_json_atomic(folder / "contract.json", data.contract.to_dict())
    found = {**environment(), "git": git_state(), "split_hash": data.split_hash, "command": _command()}
    write_json_atomic(folder / "environment.json", found)


def _command() -> str:
    """The command line that started this process, or nothing where brainage is used as a library."""
    return shlex.join(["brainage", *sys.argv[1:]]) if Path(sys.argv[0]).name == "brainage" else ""


def _payload(experiment: Experiment, data: ScanSource) -> Payload:
    trained_on = data.table.iloc[data.rows("train")]
    salt = f"{experiment.name}:{data.split_hash}"
    return Payload(
        experiment=experiment,
        contract=data.contract,
        split_hash=data.split_hash,
        seen=seen_people(trained_on, salt),
        salt=salt,
        ages=age_histogram(trained_on),
        mlflow_run_id="",
        step=0,
    )


def _start_mlflow(folder: Path, experiment: Experiment, data: ScanSource, parent: Path | None) -> MlflowRun:
    tags = {"stage": "pretrain", "loss": experiment.loss.name, "git": str(git_state().get("commit", ""))}
    above = MlflowRun(parent, experiment.tracking).run_id if parent and parent != folder else None
    if above:
        tags["mlflow.parentRunId"] = above
    run = start_mlflow_run(
        experiment.tracking,
        run_folder=folder,
        run_name=network_name(experiment),
        params=flatten(experiment) | {"split_hash": data.split_hash},
        tags=tags,
    )
    profile = {str(split): int(count) for split, count in data.table["split"].value_counts().items()}
    run.log_cohort(f"{experiment.data.cohort}_{experiment.data.modality}", data.split_hash, profile=profile)
    return run


def _record_health(folder: Path, health: watching.Health, status: str, message: str) -> None:
    write_json_atomic(folder / "health.json", {"status": status, "message": message, "last": health.line})


def _fast_dev_run(experiment: Experiment, data: ScanSource) -> Pretrained:
    start = time.perf_counter()
    module = build_module(experiment, data)
    with tempfile.TemporaryDirectory() as scratch:
        journal = MetricJournal(Path(scratch) / "metrics.jsonl")
        recorder = watching.Recorder(journal, 1, data.loader_wait_s)
        health = watching.Health(HealthWatch(experiment.health), recorder, 1)
        trainer = build_trainer(experiment, [recorder, health], max_steps=1, limit_val_batches=1)
        guard(experiment, data.contract)
        trainer.fit(module, datamodule=data)  # type: ignore[arg-type]
        trainer.validate(module, datamodule=data, verbose=False)  # type: ignore[arg-type]
    return Pretrained(Path(), Path(), trained=True, seconds=time.perf_counter() - start)


def _quieten_lightning() -> None:
    """Leave out what Lightning says of itself, and its advice that does not apply: the loader resumes by the step."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    resumable, workers, leaf = ".*your dataloader is not resumable.*", ".*does not have many workers.*", ".*LeafSpec.*"
    for message in (resumable, workers, leaf, ".*Total length of `list` across ranks is zero.*"):  # no val split
        warnings.filterwarnings("ignore", message)


def _move_aside(folder: Path) -> None:
    number = 1
    while (target := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    shutil.move(folder, target)
    warn(f"{folder}: checkpoint.resume=never, the earlier run is kept as {target.name}")


@contextmanager
def _only_process(folder: Path) -> Iterator[None]:
    with (folder / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another process is training this run; wait for it or change the experiment"
            ) from None
        yield
