"""3D AlexNet (Abrol et al. 2021, Nature Communications), with the global max-pool of arXiv 2211.08326.

Convolutions 5/3/3/3/3 of 64-128-192-192-128 channels, normalised; the first has stride 2, the first two no padding
and a max-pool of 3 behind them. Legend: N samples, C channels, X Y Z voxels in RAS.
"""

from __future__ import annotations

from torch import Tensor, nn

from brainage.config import EncoderConfig
from brainage.encoders.layers import Encoder, MaxPool3d, global_max, initialise, normalisation, scaled
from brainage.imaging.contract import InputContract

# channels, kernel, stride, padding, edge of the max-pool behind (0: none)
LAYERS = ((64, 5, 2, 0, 3), (128, 3, 1, 0, 3), (192, 3, 1, 1, 0), (192, 3, 1, 1, 0), (128, 3, 1, 1, 0))


class AlexNet(Encoder):
    """128 features; 2,553,728 parameters at width 1 with one input channel. Needs at least 33 voxels an axis."""

    minimum_edge = 33  # 33 -> 15 -> 5 -> 3 -> 1

    def __init__(self, config: EncoderConfig, contract: InputContract) -> None:
        super().__init__(config, contract)
        layers: list[nn.Module] = []
        inputs = contract.shape[0]
        for channels, kernel, stride, padding, pool in LAYERS:
            outputs = scaled(channels, config.width)
            # The published layers keep their bias in front of the normalisation; the parameter count includes it.
            layers += [nn.Conv3d(inputs, outputs, kernel, stride, padding), normalisation(config.norm, outputs)]
            layers += [nn.ReLU(inplace=True), *([MaxPool3d(pool, pool)] if pool else [])]
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.features = inputs
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, X, Y, Z] -> [N, features]."""
        return global_max(self.layers(x))
