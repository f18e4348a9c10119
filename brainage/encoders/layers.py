"""What the encoders share: their base class, width, normalisation, initialisation and pooling.

Legend: N samples (views included), C channels, X Y Z voxels in RAS, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainage.config import EncoderConfig
from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract

MOST_GROUPS = 32
FEWEST_CHANNELS_A_GROUP = 8


class Encoder(nn.Module):
    """Base of every encoder: built from (config, contract), maps [N, *contract.shape] to [N, features]."""

    kind: ClassVar[Literal["volume", "vector"]] = "volume"
    minimum_edge: ClassVar[int] = 1  # fewest voxels along an axis that leave one behind the last layer
    features: int  # length of the vector that `forward` gives

    def __init__(self, config: EncoderConfig, contract: InputContract) -> None:
        super().__init__()


def scaled(channels: int, width: float) -> int:
    """Channels of a layer whose published size is multiplied by `width`; never below 1.

    >>> scaled(64, 0.25), scaled(64, 0.001)
    (16, 1)
    """
    return max(1, round(channels * width))


def group_count(channels: int) -> int:
    """Groups of a GroupNorm: the most that divide the channels, at most 32, with 8 or more channels in each.

    Groups of one channel would wipe out the signal where the grid has shrunk to a single voxel.

    >>> group_count(512), group_count(64), group_count(20), group_count(7)
    (32, 8, 2, 1)
    """
    most = min(MOST_GROUPS, max(1, channels // FEWEST_CHANNELS_A_GROUP))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def normalisation(name: str, channels: int, axes: int = 3) -> nn.Module:
    """The layer named by `encoder.norm` for volumes (`axes=3`) or vectors (`axes=0`)."""
    if name == "batch":
        return nn.BatchNorm3d(channels) if axes == 3 else nn.BatchNorm1d(channels)
    if name == "group":
        return nn.GroupNorm(group_count(channels), channels)
    if name == "none":
        return nn.Identity()
    raise ConfigError(f"encoder.norm={name}: expected batch, group or none")


def initialise(network: nn.Module) -> None:
    """He normal weights (He et al. 2015, equation 10: variance 2 / inputs of a unit), biases 0, gains 1.

    The forward form keeps the scale of the features even with `norm: none`. No gain starts at 0: a residual branch
    that starts silent would make every subject's features equal at first.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class MaxPool3d(nn.Module):
    """Max pooling that also trains on a GPU when `trainer.deterministic` is on (CUDA's own backward refuses)."""

    def __init__(self, kernel: int, stride: int, padding: int = 0) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding

    def forward(self, x: Tensor) -> Tensor:
        pool = max_pool_by_slices if _refuses_backward(x) else F.max_pool3d
        return pool(x, self.kernel, self.stride, self.padding)


class AvgPool3d(nn.Module):
    """Mean over blocks of `kernel` voxels an axis; like MaxPool3d, it trains deterministically on a GPU."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool_by_slices(x, self.kernel) if _refuses_backward(x) else F.avg_pool3d(x, self.kernel)


def _refuses_backward(x: Tensor) -> bool:
    return x.is_cuda and torch.are_deterministic_algorithms_enabled()


def max_pool_by_slices(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Max pooling of [N, C, X, Y, Z] one axis at a time, of elementwise operations only.

    Equal to `F.max_pool3d`, gradients included where the maximum is unique; tied maxima share theirs.
    (Behind a ReLU the ties are zeros, which pass no gradient.)
    """
    padded = F.pad(x, [padding] * 6, value=-torch.inf) if padding else x
    return _pool_by_slices(padded, kernel, stride, torch.maximum)


def avg_pool_by_slices(x: Tensor, kernel: int) -> Tensor:
    """Mean over blocks of `kernel` voxels an axis; voxels that fill no block are left out, as in `F.avg_pool3d`."""
    return _pool_by_slices(x, kernel, kernel, torch.add) / kernel**3


def _pool_by_slices(x: Tensor, kernel: int, stride: int, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    for axis in (2, 3, 4):
        count = (x.shape[axis] - kernel) // stride + 1
        slices = [x.narrow(axis, start, stride * (count - 1) + 1) for start in range(kernel)]
        index = (slice(None),) * axis + (slice(None, None, stride),)
        pooled = slices[0][index]
        for other in slices[1:]:
            pooled = combine(pooled, other[index])
        x = pooled
    return x


def global_mean(x: Tensor) -> Tensor:
    """Mean over the voxels: [N, C, X, Y, Z] -> [N, C]."""
    return x.mean(dim=(2, 3, 4))


def global_max(x: Tensor) -> Tensor:
    """Maximum over the voxels: [N, C, X, Y, Z] -> [N, C]; tied maxima share the gradient."""
    return x.amax(dim=(2, 3, 4))
