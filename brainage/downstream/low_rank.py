"""Parts of an encoder that train while the rest is frozen: its stages, or low-rank updates of its layers.

The updates are LoRA's (Hu et al. 2021, arXiv 2106.09685).

Legend: O outputs of a layer, I its inputs (times the voxels of a kernel, for a convolution), r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from brainage.encoders.layers import AvgPool3d, MaxPool3d
from brainage.errors import ConfigError


def stages_of(encoder: nn.Module) -> list[nn.ModuleList]:
    """An encoder's layers in the order of its forward pass, in stages; each parameter is in one of them.

    A stage of a convolutional encoder is what works on one grid, behind a pooling or from a strided convolution on
    (ResNet and DenseNet: the stem and four stages; AlexNet: three); a stage of an MLP is a linear layer with what
    follows it.
    """
    stages: list[list[nn.Module]] = []
    pooled = True
    for child in encoder.children():
        for unit in child if isinstance(child, nn.Sequential) else [child]:
            if pooled or isinstance(unit, nn.Linear) or _shrinks(unit):
                stages.append([])
            stages[-1].append(unit)
            pooled = isinstance(unit, MaxPool3d | AvgPool3d)
    return [nn.ModuleList(stage) for stage in stages]


def _shrinks(unit: nn.Module) -> bool:
    return any(isinstance(layer, nn.Conv3d) and max(layer.stride) > 1 for layer in unit.modules())


class LowRank(nn.Module):
    """Weight -> weight + up down, with `up` [O, r] and `down` [r, I]; r is at most min(O, I).

    A kernel [O, C, X, Y, Z] is updated as the matrix [O, C X Y Z]. `up` starts at 0, so that the layer starts as it
    was, and `down` as a linear layer of torch does. The paper's factor alpha / r is 1: Adam's step does not depend on
    it, but for the size of `down` at the start.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.flatten(1).shape
        rank = min(rank, outputs, inputs)
        self.down = nn.Parameter(weight.new_empty(rank, inputs))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):  # else merging would round otherwise than training
            return weight + (self.up @ self.down).view_as(weight)


def add_low_rank(network: nn.Module, rank: int) -> None:
    """Freeze a network and give every Linear and Conv3d inside an update that trains; in place.

    >>> layer = nn.Linear(10, 20)
    >>> add_low_rank(layer, 2)
    >>> sum(p.numel() for p in layer.parameters() if p.requires_grad)
    60

    Raises ConfigError when the rank is below 1 or the network has no such layer.
    """
    if rank < 1:
        raise ConfigError(f"finetune.rank={rank}: expected 1 or more")
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv3d)]
    if not layers:
        raise ConfigError(f"finetune.mode=low_rank: {type(network).__name__} has no linear layer or convolution")
    network.requires_grad_(False)
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))


def merge_low_rank(network: nn.Module) -> None:
    """Add the updates to the weights, in place: the same function, as the layers were before `add_low_rank`."""
    for layer in list(network.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
