"""What a run will take, measured on two samples before it starts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from brainage.config import Experiment
from brainage.imaging.contract import InputContract
from brainage.losses.names import CONTRASTIVE_NAMES
from brainage.pretraining.checkpoint import new_module
from brainage.pretraining.group import wanted_ranks
from brainage.pretraining.module import PretrainingModule
from brainage.runtime import available_memory_gib, choose_device, set_threads

_QUICK_S = 0.05
_FEWEST, _MOST, _MEASURE_S = 3, 11, 0.5  # passes that are timed


@dataclass(frozen=True)
class Cost:
    """Estimates: `seconds` is an upper bound on a GPU, which does better on full batches than on two samples."""

    steps: int
    steps_per_epoch: int
    samples_a_step: int
    seconds: float
    device: str
    free_gib: float  # memory of that device now
    memory_gib: float  # weights, gradients, optimiser, the batch as stored, and what the backward pass keeps of it


def training_cost(experiment: Experiment, contract: InputContract, train_scans: int) -> Cost:
    """Time one forward and backward pass of two samples and scale it up; counts the tensors kept for backward.

    contract: of the samples. train_scans: rows of the train split.
    """
    device = choose_device(experiment.trainer.accelerator)
    set_threads(experiment.trainer.threads)
    batch = min(experiment.data.batch_size, train_scans)
    batches_per_epoch = max(1, train_scans // batch)
    samples = _most_samples(experiment, batch)  # of a device, and all devices work at once
    module = new_module(experiment, contract, batches_per_epoch).to(device)
    seconds, kept = _time_samples(module, contract, 2, device)
    measured = 2
    if seconds < _QUICK_S:  # two samples say little of a small network, whose time is overhead
        seconds, kept = _time_samples(module, contract, samples, device)
        measured = samples
    total = batches_per_epoch * experiment.trainer.epochs
    return Cost(
        steps=module.total_steps,
        steps_per_epoch=module.steps_per_epoch,
        samples_a_step=batch * experiment.augment.views * module.accumulation.size(0),
        seconds=seconds / measured * samples * total * (4 / 3 if _held(experiment, samples) < samples else 1),
        device=str(device),
        free_gib=torch.cuda.mem_get_info()[0] / 2**30 if device.type == "cuda" else available_memory_gib(),
        memory_gib=(
            _weight_bytes(experiment, module)
            + _stored_bytes(experiment, contract, samples)
            + kept / measured * _held(experiment, samples)
        )
        / 2**30,
    )


def memory_gib(experiment: Experiment, contract: InputContract, batch: int) -> float:
    """What training takes of each device in fp32 for a global batch of so many scans: weights, gradients, optimiser,
    the batch as it is stored, and what the backward pass keeps. Counted on tensors without values, so it costs nothing;
    work space is not in it, nor a store that is resident there.
    """
    stored = _stored_bytes(experiment, contract, _most_samples(experiment, batch))
    samples = _held(experiment, _most_samples(experiment, batch))
    state = torch.get_rng_state()
    module = new_module(experiment, contract).to("meta")
    torch.set_rng_state(state)
    kept = _kept_bytes(module, torch.empty((max(samples, 2), *contract.shape), device="meta"))[0]
    return (_weight_bytes(experiment, module) + stored + kept / max(samples, 2) * samples) / 2**30


def several_devices(
    experiment: Experiment, contract: InputContract, module: PretrainingModule, batch: int
) -> dict[str, str]:
    """Line of the start-up panel: how a global batch is dealt to the devices, and what they exchange at each step."""
    trainer, devices = experiment.trainer, wanted_ranks(experiment)
    if devices == 1:
        return {}
    each, more = divmod(batch, devices)
    width = experiment.encoder.head_dim if experiment.loss.name in CONTRASTIVE_NAMES else module.encoder.features + 1
    exchanged = batch * (experiment.augment.views * width * 4 + 3 * 8)
    gradients = sum(p.numel() * p.element_size() for p in module.parameters())
    norm = "over all devices" if trainer.sync_batchnorm else "over each device's own samples"
    share = f"{each}-{each + 1}" if more else f"{each}"
    return {
        "devices": f"{devices} ({trainer.devices} on each of {trainer.nodes} nodes), {share} scans each; "
                   f"a step gathers {exchanged / 2**20:.2f} MiB of embeddings and averages "
                   f"{gradients / 2**20:.1f} MiB of gradients; BatchNorm {norm}",
    }  # fmt: skip


def _most_samples(experiment: Experiment, batch: int) -> int:
    """Samples of the device that has most of a global batch."""
    return -(-batch // wanted_ranks(experiment)) * experiment.augment.views


def _held(experiment: Experiment, samples: int) -> int:
    """Samples whose tensors are kept for the backward pass at one time."""
    return min(samples, experiment.trainer.chunk_samples or samples)


def _stored_bytes(experiment: Experiment, contract: InputContract, samples: int) -> int:
    """Bytes of the scans of so many samples as they come from the store, which stay until the step is over: with
    `trainer.chunk_samples` each is cut into its views once more in the backward pass."""
    return samples // experiment.augment.views * math.prod(contract.shape) * contract.dtype.itemsize


def _weight_bytes(experiment: Experiment, module: PretrainingModule) -> int:
    """Weights, gradients, what the optimiser remembers of them, and their average where one is kept."""
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    return weights * (2 + (1 if experiment.optim.name == "sgd" else 2) + (experiment.trainer.ema_decay > 0))


def _time_samples(
    module: PretrainingModule, contract: InputContract, n: int, device: torch.device
) -> tuple[float, int]:
    """Seconds of a forward and backward pass of n samples, and bytes kept between the two (weights not counted)."""
    x = torch.randn(n, *contract.shape, device=device)
    kept = 0
    seconds: list[float] = []
    while len(seconds) < _FEWEST or (len(seconds) < _MOST and sum(seconds) < _MEASURE_S):
        start = time.perf_counter()
        kept, output = _kept_bytes(module, x)
        output.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]), kept  # the first pass warms up; the others wait for other programs


def _kept_bytes(module: PretrainingModule, x: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Bytes that a forward pass keeps for the backward pass (weights not counted), and a scalar to start that from."""
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = module.head(module.encoder(x)).square().mean()
    return sum(storage.nbytes() for storage in kept.values()), output
