"""One pre-training run: from an experiment and its scans to a run folder with a finished checkpoint."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path

import lightning as L
import torch

from brainage.augment import check_augment
from brainage.config import Experiment, flatten, network_name, run_folder
from brainage.data.source import ScanSource, data_digest
from brainage.data.splits import age_histogram, seen_people
from brainage.encoders.sync_norm import synchronise
from brainage.errors import TrainingStopped
from brainage.pretraining import callbacks as watching
from brainage.pretraining.averaging import Averaging
from brainage.pretraining.checkpoint import (
    PAYLOAD,
    Payload,
    last_good,
    load_checkpoint,
    new_module,
    refuse_other_training,
)
from brainage.pretraining.folder import (
    Pretrained,
    move_aside,
    only_process,
    read_finished,
    refuse_other_data,
    write_finished,
    write_inputs,
)
from brainage.pretraining.gather import from_first
from brainage.pretraining.group import agree, check_ranks, first_prepares, join, leave, wanted_ranks
from brainage.pretraining.health import HealthWatch
from brainage.pretraining.launch import launch
from brainage.pretraining.module import PretrainingModule
from brainage.pretraining.plan import memory_gib, several_devices
from brainage.pretraining.stopping import Stopper
from brainage.pretraining.supervised import SupervisedModule
from brainage.pretraining.trainer import build_trainer, guard
from brainage.runtime import choose_device, git_state, print_panel, seed_everything, warn, write_json_atomic
from brainage.runtime.ranks import is_first, launched
from brainage.runtime.signals import Stopped, noted
from brainage.tracking import MetricJournal, MlflowRun, start_mlflow_run


def pretrain(
    experiment: Experiment, data: ScanSource, *, label: str = "pretrain", parent: Path | None = None
) -> Pretrained:
    """Train, or continue, or find finished: the run folder follows from the training configuration alone.

    `parent` is the folder of the run that this network is compared with; MLflow shows it below that one.
    Raises TrainingStopped when the run collapsed, turned NaN or stalled, CheckpointError when the folder holds another
    run, ConfigError when another process is training it or the device cannot do what is asked, Stopped (an exit with
    code 128 + signal) after SIGTERM or SIGUSR1, behind a checkpoint of the step that was under way.
    """
    check_ranks(experiment, int((data.planned()["split"] == "train").sum()))
    if wanted_ranks(experiment) > 1 and not launched():
        return _in_several_processes(experiment, data, label, parent)
    join(experiment)
    try:
        first_prepares(data, lambda data: data.store)
        if experiment.trainer.fast_dev_run:
            return _fast_dev_run(experiment, data)
        return _train_if_missing(experiment, data, label, parent)
    except BaseException as error:
        if isinstance(error, Stopped) and error.together:
            agree(lambda: None)  # srun ends the others with the first that leaves: the one that closes MLflow stays
        else:
            leave()
        raise


def _in_several_processes(experiment: Experiment, data: ScanSource, label: str, parent: Path | None) -> Pretrained:
    """The same in processes of which each calls `pretrain`; the store is filled, and shared, before they start."""
    start, folder = time.perf_counter(), run_folder(experiment)
    keeps = not experiment.trainer.fast_dev_run
    if keeps and experiment.checkpoint.resume != "never" and (finished := read_finished(folder, data)):
        return finished
    first_prepares(data, lambda data: data.store)
    launch(experiment, label=label, parent=parent)
    finished = read_finished(folder, data) if keeps else None
    seconds = finished.seconds if finished else time.perf_counter() - start
    return Pretrained(folder, finished.checkpoint if finished else Path(), trained=True, seconds=seconds)


def _train_if_missing(experiment: Experiment, data: ScanSource, label: str, parent: Path | None) -> Pretrained:
    """Train with the folder locked, by the first rank for all of them."""
    folder = run_folder(experiment)

    def finished_before() -> Pretrained | None:
        if experiment.checkpoint.resume == "never" and folder.exists():
            with only_process(folder):
                move_aside(folder)
        return read_finished(folder, data)  # before the lock: a finished run may lie where nobody can write

    if finished := agree(finished_before):
        return finished
    with ExitStack() as held:

        def hold() -> Pretrained | None:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(only_process(folder))
            return read_finished(folder, data)  # by the process that held the lock until now

        if finished := agree(hold):
            return finished
        start = time.perf_counter()
        with noted():
            checkpoint = _train(folder, experiment, data, label, parent)
            return agree(lambda: write_finished(folder, checkpoint, data, time.perf_counter() - start))


def build_module(experiment: Experiment, data: ScanSource) -> PretrainingModule:
    """A fresh module for these scans: weights by the seed, input and age scales by the train set."""
    check_augment(experiment.augment, data.contract)
    seed_everything(experiment.seed)
    data.seed = experiment.seed
    module = new_module(experiment, data.contract, batches_per_epoch=len(data.train_dataloader()))
    rows = data.rows("train")
    if is_first():
        module.normaliser.fit(data.store.arrays, rows)
    for learnt in module.normaliser.buffers():
        from_first(learnt)
    if isinstance(module, SupervisedModule):
        module.fit_ages(data.table["age_years"].to_numpy()[rows])
    if launched() and experiment.trainer.sync_batchnorm:
        synchronise(module, choose_device(experiment.trainer.accelerator))
    if experiment.trainer.compile:
        module.compile_encoder()
    return module


def _train(folder: Path, experiment: Experiment, data: ScanSource, label: str, parent: Path | None) -> Path:
    resume = agree(lambda: _resume_from(folder, experiment, data))
    module = build_module(experiment, data)
    agree(lambda: write_inputs(folder, experiment, data))  # a refused run leaves the folder as it was
    with (
        MetricJournal(folder / "metrics.jsonl") if is_first() else nullcontext() as journal,
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
        watchers: list[L.Callback] = [
            recorder,
            health,
            keeper,
            Stopper(keeper),
        ]  # a step that stops a run is journalled
        if experiment.trainer.ema_decay:
            watchers.insert(0, Averaging(experiment.trainer.ema_decay))  # before a checkpoint or a validation
        if experiment.trainer.progress:
            watchers.append(watching.ProgressLine(recorder, health, module.total_steps, label))
        trainer = build_trainer(experiment, watchers)
        guard(experiment, data.contract)
        print_panel(f"{label} {experiment.name}", start_up(experiment, data, module, folder, resume))
        keeper.newest = resume
        try:
            trainer.fit(module, datamodule=data, ckpt_path=resume)  # type: ignore[arg-type]
        except TrainingStopped as stopped:
            if is_first():
                _record_health(folder, health, "stopped", str(stopped))
            raise
        if is_first():
            _record_health(folder, health, "ok", "")
        mlflow.finish()
    assert keeper.newest is not None
    return keeper.newest


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
        "batch": f"{batch} scans x {views} views = {batch * views} samples{module.accumulation.words}; "
                 f"{module.steps_per_epoch} steps an epoch, {module.total_steps} in all",
        **several_devices(experiment, data.contract, module, batch),
        "memory": f"about {memory_gib(experiment, data.contract, batch):.2g} GiB a device in fp32",
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
        path, torn = last_good(folder)
        for damaged, reason in torn.items():
            warn(f"{reason}; going back to {path.name if path else 'step 0'}")
            damaged.rename(damaged.with_suffix(".torn"))  # or it would count as the newest for ever
    else:
        path = Path(chosen)
    if path is not None:
        payload = Payload.from_dict(load_checkpoint(path)[PAYLOAD], path)
        refuse_other_training(path, payload, experiment)
        payload.contract.refuse_other(data.contract, str(path))
        refuse_other_data(path, data, payload.split_hash, payload.data_digest)
    return path


def _payload(experiment: Experiment, data: ScanSource) -> Payload:
    trained_on = data.table.iloc[data.rows("train")]
    salt = f"{experiment.name}:{data.split_hash}"
    return Payload(
        experiment=experiment,
        contract=data.contract,
        split_hash=data.split_hash,
        data_digest=data_digest(data),
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
