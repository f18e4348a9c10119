"""The Lightning trainer of an experiment, and what this machine must be able to do before it starts."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning as L

from brainage.config import Experiment
from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract
from brainage.pretraining.checkpoint import AtomicCheckpointIO
from brainage.runtime import choose_device, guard_precision, set_threads

PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


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


def _quieten_lightning() -> None:
    """Leave out what Lightning says of itself, and its advice that does not apply: the loader resumes by the step."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    resumable, workers, leaf = ".*your dataloader is not resumable.*", ".*does not have many workers.*", ".*LeafSpec.*"
    for message in (resumable, workers, leaf, ".*Total length of `list` across ranks is zero.*"):  # no val split
        warnings.filterwarnings("ignore", message)
