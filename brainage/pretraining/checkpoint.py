"""Checkpoints: whole or absent, plain types only, and enough beside the weights to know what they may be used for."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from brainage.config import Experiment, differing_keys, from_plain, to_plain
from brainage.errors import CheckpointError
from brainage.imaging.contract import InputContract
from brainage.losses.names import SUPERVISED_NAMES
from brainage.pretraining.averaging import evaluated_weights
from brainage.pretraining.module import PretrainingModule
from brainage.runtime.files import write_atomically

SCHEMA_VERSION = 1
PAYLOAD = "brainage"  # key of our part inside the Lightning checkpoint


@dataclass(frozen=True)
class Payload:
    """What a checkpoint says of itself."""

    experiment: Experiment
    contract: InputContract
    split_hash: str
    data_digest: str  # samples and ages it was trained on
    seen: list[str]  # salted hashes of the training persons
    salt: str
    ages: dict[str, int]  # decade -> training persons
    mlflow_run_id: str
    step: int

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, so that the file loads with `weights_only=True`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "experiment": to_plain(self.experiment),
            "contract": self.contract.to_dict(),
            "split_hash": self.split_hash,
            "data_digest": self.data_digest,
            "seen": list(self.seen),
            "salt": self.salt,
            "ages": dict(self.ages),
            "mlflow_run_id": self.mlflow_run_id,
            "step": self.step,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], path: Path) -> Payload:
        """Inverse of `to_dict`; raises CheckpointError when another schema version wrote it."""
        found = values.get("schema_version")
        if found != SCHEMA_VERSION:
            raise CheckpointError(
                f"{path}: checkpoint schema {found}, expected {SCHEMA_VERSION}; use the brainage that wrote it"
            )
        return cls(
            experiment=from_plain(values["experiment"], str(path)),
            contract=InputContract.from_dict(values["contract"]),
            split_hash=values["split_hash"],
            data_digest=values["data_digest"],
            seen=values["seen"],
            salt=values["salt"],
            ages=values["ages"],
            mlflow_run_id=values["mlflow_run_id"],
            step=values["step"],
        )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes under a temporary name, flushes to the disk, then renames: a kill leaves the old file or the new."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)

        def save(temporary: Path) -> None:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)

        try:
            write_atomically(target, save)
        except (OSError, RuntimeError) as error:  # torch's archive writer turns a full disk into a RuntimeError
            raise CheckpointError(
                f"{target}: not written ({str(error).splitlines()[0]}); free some disk and start again, "
                "the run continues from its last whole checkpoint"
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The whole checkpoint on the CPU; raises CheckpointError when it is absent, torn, or not one of ours."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not look at the check sums
        if damaged:
            raise CheckpointError(f"{path}: torn checkpoint ({damaged} fails its check sum)")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (CheckpointError, MemoryError, PermissionError):
        raise  # the file may be whole
    except Exception as error:
        raise CheckpointError(f"{path}: not a whole checkpoint ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(checkpoint, dict) or PAYLOAD not in checkpoint:
        raise CheckpointError(f"{path}: a checkpoint, but not written by brainage")
    return checkpoint


def checkpoint_name(step: int) -> str:
    """File name of the checkpoint of a step; names sort by step."""
    return f"step_{step:08d}.ckpt"


def checkpoints(run_folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first; they may be torn."""
    return sorted((run_folder / "checkpoints").glob("step_*.ckpt"), reverse=True)


def last_good(run_folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that is whole, and for each newer one what is wrong with it."""
    torn = {}
    for path in checkpoints(run_folder):
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            torn[path] = str(error)
        else:
            return path, torn
    return None, torn


def refuse_other_training(path: Path, payload: Payload, experiment: Experiment) -> None:
    """Raise CheckpointError naming every key in which a checkpoint's training differs from the one asked for."""
    differing = differing_keys(payload.experiment, experiment)
    differing.pop("name", None)
    if differing:
        phrases = ", ".join(f"{key} ({before!r}, now {now!r})" for key, (before, now) in differing.items())
        raise CheckpointError(f"{path}: of another configuration; differs in {phrases}")


def new_module(experiment: Experiment, contract: InputContract, batches_per_epoch: int = 1) -> PretrainingModule:
    """The module of an experiment's loss with fresh weights."""
    from brainage.pretraining.contrastive import ContrastiveModule
    from brainage.pretraining.supervised import SupervisedModule

    chosen = SupervisedModule if experiment.loss.name in SUPERVISED_NAMES else ContrastiveModule
    return chosen(experiment, contract, batches_per_epoch=batches_per_epoch)


def load_module(path: Path) -> tuple[PretrainingModule, Payload]:
    """A trained module in evaluation mode on the CPU, with averaged weights where `trainer.ema_decay` kept some, and
    what its checkpoint says of itself."""
    checkpoint = load_checkpoint(path)
    payload = Payload.from_dict(checkpoint[PAYLOAD], path)
    module = new_module(payload.experiment, payload.contract)
    module.load_state_dict(evaluated_weights(checkpoint))
    return module.eval(), payload
