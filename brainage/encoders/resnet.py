"""3D residual networks of 18, 34 and 50 layers (He et al. 2016), as used for brain age in arXiv 2211.08326.

Stem conv 7^3 stride 2 and max-pool 3 stride 2, four stages of 64-128-256-512 channels, global mean. A block that
changes the shape has a 1^3 convolution on its shortcut. Legend: N samples, C channels, X Y Z voxels in RAS.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainage.config import EncoderConfig
from brainage.encoders.layers import Encoder, MaxPool3d, global_mean, initialise, normalisation, scaled
from brainage.imaging.contract import InputContract


class _Residual(nn.Module):
    """ReLU(branch(x) + shortcut(x)); subclasses give the branch."""

    def __init__(self, branch: nn.Sequential, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = _convolution(inputs, outputs, 1, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class BasicBlock(_Residual):
    """Two 3^3 convolutions."""

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, channels: int, stride: int, norm: str) -> None:
        branch = nn.Sequential(
            _convolution(inputs, channels, 3, stride, norm),
            nn.ReLU(inplace=True),
            _convolution(channels, channels, 3, 1, norm),
        )
        super().__init__(branch, inputs, channels, stride, norm)


class BottleneckBlock(_Residual):
    """1^3, 3^3 and 1^3 convolutions; the 3^3 one carries the stride."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, channels: int, stride: int, norm: str) -> None:
        outputs = channels * self.expansion
        branch = nn.Sequential(
            _convolution(inputs, channels, 1, 1, norm),
            nn.ReLU(inplace=True),
            _convolution(channels, channels, 3, stride, norm),
            nn.ReLU(inplace=True),
            _convolution(channels, outputs, 1, 1, norm),
        )
        super().__init__(branch, inputs, outputs, stride, norm)


class ResNet18(Encoder):
    """512 features; 33,160,000 parameters at width 1 with one input channel."""

    block: ClassVar[type[BasicBlock] | type[BottleneckBlock]] = BasicBlock
    depths: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)

    def __init__(self, config: EncoderConfig, contract: InputContract) -> None:
        super().__init__(config, contract)
        channels = scaled(64, config.width)
        self.stem = nn.Sequential(
            _convolution(contract.shape[0], channels, 7, 2, config.norm),
            nn.ReLU(inplace=True),
            MaxPool3d(3, 2, 1),
        )
        blocks: list[nn.Module] = []
        for stage, depth in enumerate(self.depths):
            width = scaled(64 * 2**stage, config.width)
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(self.block(channels, width, stride, config.norm))
                channels = width * self.block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.features = channels
        initialise(self)
        if config.norm == "none":
            self._calm_branches()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, X, Y, Z] -> [N, features]."""
        return global_mean(self.blocks(self.stem(x)))

    def _calm_branches(self) -> None:
        """Without normalisation every block doubles the variance (2^16 in ResNet-50), so the branches start smaller."""
        for block in self.blocks:
            assert isinstance(block, _Residual)
            last = [module for module in block.branch.modules() if isinstance(module, nn.Conv3d)][-1]
            with torch.no_grad():
                last.weight.mul_(len(self.blocks) ** -0.5)


class ResNet34(ResNet18):
    """512 features."""

    depths = (3, 4, 6, 3)


class ResNet50(ResNet18):
    """2048 features."""

    block = BottleneckBlock
    depths = (3, 4, 6, 3)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, norm: str) -> nn.Sequential:
    convolution = nn.Conv3d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=norm == "none")
    return nn.Sequential(convolution, normalisation(norm, outputs))
