"""3D DenseNet-121 (Huang et al. 2017) without the final normalisation, as used for brain age in arXiv 2211.08326.

Stem conv 7^3 stride 2 and max-pool 3 stride 2; dense blocks of 6-12-24-16 layers of growth 32, each followed (but the
last) by a transition that halves channels and grid; ReLU and global mean. Legend: N samples, C channels, X Y Z voxels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainage.config import EncoderConfig
from brainage.encoders.layers import AvgPool3d, Encoder, MaxPool3d, global_mean, initialise, normalisation, scaled
from brainage.imaging.contract import InputContract

GROWTH = 32
DEPTHS = (6, 12, 24, 16)


class DenseLayer(nn.Module):
    """Appends `growth` channels to its input: normalise, ReLU, conv 1^3 to 4 x growth, the same again, conv 3^3."""

    def __init__(self, inputs: int, growth: int, norm: str) -> None:
        super().__init__()
        bias = norm == "none"
        self.branch = nn.Sequential(
            normalisation(norm, inputs),
            nn.ReLU(),  # not in place: with norm=none it would overwrite the layer's input
            nn.Conv3d(inputs, 4 * growth, 1, bias=bias),
            normalisation(norm, 4 * growth),
            nn.ReLU(inplace=True),
            nn.Conv3d(4 * growth, growth, 3, padding=1, bias=bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch(x)], dim=1)


class DenseNet121(Encoder):
    """1024 features; 11,240,576 parameters at width 1 with one input channel."""

    minimum_edge = 29  # 29 -> 15 -> 8 -> 4 -> 2 -> 1

    def __init__(self, config: EncoderConfig, contract: InputContract) -> None:
        super().__init__(config, contract)
        norm, bias = config.norm, config.norm == "none"
        channels, growth = scaled(2 * GROWTH, config.width), scaled(GROWTH, config.width)
        self.stem = nn.Sequential(
            nn.Conv3d(contract.shape[0], channels, 7, stride=2, padding=3, bias=bias),
            normalisation(norm, channels),
            nn.ReLU(inplace=True),
            MaxPool3d(3, 2, 1),
        )
        layers: list[nn.Module] = []
        for block, depth in enumerate(DEPTHS):
            for _ in range(depth):
                layers.append(DenseLayer(channels, growth, norm))
                channels += growth
            if block < len(DEPTHS) - 1:
                transition = nn.Conv3d(channels, channels // 2, 1, bias=bias)
                layers += [normalisation(norm, channels), nn.ReLU(), transition, AvgPool3d(2)]
                channels //= 2
        self.layers = nn.Sequential(*layers)
        self.features = channels
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, X, Y, Z] -> [N, features]."""
        return global_mean(F.relu(self.layers(self.stem(x))))
