"""Optimisers and learning-rate schedules; the rate is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from brainage.config import OptimConfig


def build_optimiser(config: OptimConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD. Adam's weight decay is an L2 penalty (as in the published recipe), AdamW's is decoupled."""
    values = list(parameters)
    if config.name == "sgd":
        return torch.optim.SGD(values, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    chosen = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return chosen(values, lr=config.lr, weight_decay=config.weight_decay)


def rate_factor(config: OptimConfig, steps_per_epoch: int, total_steps: int) -> Callable[[int], float]:
    """Step -> factor of the base rate: linear warm-up to 1, then constant, step decay, or cosine towards zero.

    >>> factor = rate_factor(OptimConfig(schedule="step", step_epochs=10, step_gamma=0.9), 5, 150)
    >>> factor(49), round(factor(50), 6), round(factor(149), 6)
    (1.0, 0.9, 0.81)
    >>> warm = rate_factor(OptimConfig(schedule="cosine", warmup_epochs=1), 4, 12)
    >>> [warm(step) for step in (0, 3, 4, 8)]
    [0.25, 1.0, 1.0, 0.5]
    """
    warm_steps = round(config.warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warm_steps:
            return (step + 1) / warm_steps
        if config.schedule == "step":
            return config.step_gamma ** (step // (config.step_epochs * steps_per_epoch))
        if config.schedule == "cosine":
            share = (step - warm_steps) / max(1, total_steps - warm_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        return 1.0

    return factor
