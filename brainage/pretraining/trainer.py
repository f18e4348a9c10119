"""The Lightning trainer of an experiment, and what this machine must be able to do before it starts."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from brainage.config import Experiment
from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract
from brainage.pretraining.checkpoint import AtomicCheckpointIO
from brainage.pretraining.group import cluster_environment, refuse_missing_devices, wanted_ranks
from brainage.runtime import allowed_cores, choose_device, guard_precision, set_threads
from brainage.runtime.precision import set_tf32
from brainage.runtime.ranks import launched

PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def build_trainer(experiment: Experiment, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    """The Lightning trainer of an experiment; everything it would write by itself is switched off."""
    trainer, optim = experiment.trainer, experiment.optim
    device = choose_device(trainer.accelerator)
    if device.type == "cuda":
        refuse_missing_devices(experiment)
    if device.type not in ("cuda", "cpu") and wanted_ranks(experiment) > 1:
        raise ConfigError(f"trainer.devices={trainer.devices}: expected 1 on {device.type}")
    together = launched()  # else one process trains, or starts the others and only asks what would be refused
    cores = max(1, allowed_cores() // trainer.devices) if together else 0
    set_threads(trainer.threads or cores)
    set_tf32(trainer.tf32, device)
    quieten_lightning()
    built = L.Trainer(
        max_epochs=trainer.epochs,
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=trainer.devices if together else 1,
        num_nodes=trainer.nodes if together else 1,
        strategy=_strategy(experiment) if together else "auto",
        precision=PRECISION[trainer.precision],  # type: ignore[arg-type]
        gradient_clip_val=optim.clip_norm or None,
        accumulate_grad_batches=trainer.accumulate,
        check_val_every_n_epoch=trainer.validate_every_epochs,
        deterministic="warn" if trainer.deterministic else None,
        benchmark=not trainer.deterministic,
        callbacks=callbacks,
        # named, so that Lightning does not look for a cluster: one process inside a Slurm job is one process
        plugins=[AtomicCheckpointIO(), cluster_environment() if together else LightningEnvironment()],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        **options,
    )
    leave_signals_alone(built)
    return built


def _strategy(experiment: Experiment) -> DDPStrategy:
    """DDP. Nothing else here or in the losses is DDP's: gathered are embeddings, checkpoints are written by all ranks
    calling `Trainer.save_checkpoint`. So FSDP would be another strategy in this place, whose sharded state needs a
    CheckpointIO that writes folders, and a validation in which no rank skips the encoder (see `validation_step`).
    """
    return DDPStrategy(
        find_unused_parameters=False,  # every parameter takes part in every step
        gradient_as_bucket_view=True,  # saves the gradients' second copy
        static_graph=False,  # it would refuse encoders that run in chunks
        # Statistics of synchronised norms are equal already. Where each rank norms its own samples, the first one's are
        # those that validate and are kept.
        broadcast_buffers=not experiment.trainer.sync_batchnorm,
    )


def leave_signals_alone(trainer: L.Trainer) -> None:
    """Lightning answers SIGTERM with a collective in the signal handler, where ranks deadlock, and asks the device at
    each step whether one came, which stalls it. Neither has a switch (2.6). `Stopper` answers signals instead."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def guard(experiment: Experiment, contract: InputContract) -> None:
    """Refuse a layout that these scans do not have, and a precision that this device computes wrongly. On a GPU the
    whole first batch is tried: the known fault (pytorch#163539) shows at large inputs only."""
    if experiment.trainer.channels_last and contract.kind != "volume":
        raise ConfigError(f"trainer.channels_last: expected volumes, found {contract.kind}s; leave the key out")
    device = choose_device(experiment.trainer.accelerator)
    if device.type == "cuda" and contract.kind == "volume":
        samples = -(-experiment.data.batch_size // wanted_ranks(experiment)) * experiment.augment.views
        guard_precision(experiment.trainer.precision, device, (samples, *contract.shape))
    else:
        guard_precision(experiment.trainer.precision, device)


def quieten_lightning() -> None:
    """Leave out what Lightning says of itself, and its advice that does not apply: the loader resumes by the step."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    batch_hook = ".*You have overridden `transfer_batch_to_device` in `LightningModule`.*"
    resumable, workers, leaf = ".*your dataloader is not resumable.*", ".*does not have many workers.*", ".*LeafSpec.*"
    warnings.filterwarnings("ignore", ".*The `srun` command is available on your system but is not used.*")
    no_val = ".*Total length of `list` across ranks is zero.*"
    buffers = ".*`broadcast_buffers` is deprecated.*"  # torch's word on a key that Lightning still asks for
    for message in (batch_hook, resumable, workers, leaf, no_val, buffers):
        warnings.filterwarnings("ignore", message)
