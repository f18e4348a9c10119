"""What a run will take, measured on two samples before it starts."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from brainage.config import Experiment
from brainage.imaging.contract import InputContract
from brainage.pretraining.checkpoint import new_module
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
    memory_gib: float  # weights, gradients, optimiser, and what the backward pass keeps of a batch


def training_cost(experiment: Experiment, contract: InputContract, train_scans: int) -> Cost:
    """Time one forward and backward pass of two samples and scale it up; counts the tensors kept for backward.

    contract: of the samples. train_scans: rows of the train split.
    """
    device = choose_device(experiment.trainer.accelerator)
    set_threads(experiment.trainer.threads)
    batch = min(experiment.data.batch_size, train_scans)
    steps_per_epoch = max(1, train_scans // batch)
    samples = batch * experiment.augment.views
    module = new_module(experiment, contract, steps_per_epoch).to(device)
    seconds, kept = _time_samples(module, contract, 2, device)
    measured = 2
    if seconds < _QUICK_S:  # two samples say little of a small network, whose time is overhead
        seconds, kept = _time_samples(module, contract, samples, device)
        measured = samples
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    state = 1 if experiment.optim.name == "sgd" else 2
    total = steps_per_epoch * experiment.trainer.epochs
    return Cost(
        steps=total,
        steps_per_epoch=steps_per_epoch,
        samples_a_step=samples,
        seconds=seconds / measured * samples * total,
        device=str(device),
        free_gib=torch.cuda.mem_get_info()[0] / 2**30 if device.type == "cuda" else available_memory_gib(),
        memory_gib=(weights * (2 + state) + kept / measured * samples) / 2**30,
    )


def _time_samples(
    module: PretrainingModule, contract: InputContract, n: int, device: torch.device
) -> tuple[float, int]:
    """Seconds of a forward and backward pass of n samples, and bytes kept between the two (weights not counted)."""
    x = torch.randn(n, *contract.shape, device=device)
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    seconds: list[float] = []
    while len(seconds) < _FEWEST or (len(seconds) < _MOST and sum(seconds) < _MEASURE_S):
        kept.clear()
        start = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = module.head(module.encoder(x)).square().mean()
        output.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]), sum(kept.values())  # the first pass warms up; the others wait for other programs
