"""What a run will take, measured on two samples before it starts."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from brainage.config import Experiment
from brainage.imaging.contract import InputContract
from brainage.pretraining.checkpoint import new_module
from brainage.runtime import choose_device, set_threads


@dataclass(frozen=True)
class Cost:
    """Estimates: `seconds` is an upper bound on a GPU, which does better on full batches than on two samples."""

    steps: int
    steps_per_epoch: int
    samples_a_step: int
    seconds: float
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
    x = torch.randn(2, *contract.shape, device=device)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    seconds = []
    for repeat in range(3):
        start = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            module.head(module.encoder(x)).square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repeat:  # the first one warms up
            seconds.append(time.perf_counter() - start)
        if not repeat:
            weights = sum(p.numel() * p.element_size() for p in module.parameters())
            activations = sum(kept.values()) - sum(kept.get(p.data_ptr(), 0) for p in module.parameters())
    state = 1 if experiment.optim.name == "sgd" else 2
    total = steps_per_epoch * experiment.trainer.epochs
    return Cost(
        steps=total,
        steps_per_epoch=steps_per_epoch,
        samples_a_step=samples,
        seconds=min(seconds) / 2 * samples * total,
        memory_gib=(weights * (2 + state) + activations / 2 * samples) / 2**30,
    )
