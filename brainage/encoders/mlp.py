"""Multilayer perceptron for feature vectors (region tables).

Legend: N samples, F values of a vector.
"""

from __future__ import annotations

from torch import Tensor, nn

from brainage.config import EncoderConfig
from brainage.encoders.layers import Encoder, initialise, normalisation, scaled
from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract


class MLP(Encoder):
    """Linear, normalisation, ReLU, dropout for each of `encoder.hidden` (times `encoder.width`)."""

    kind = "vector"

    def __init__(self, config: EncoderConfig, contract: InputContract) -> None:
        super().__init__(config, contract)
        if not config.hidden or min(config.hidden) < 1:
            raise ConfigError(f"encoder.hidden={config.hidden}: expected one width or more, each above 0")
        if not 0 <= config.dropout < 1:
            raise ConfigError(f"encoder.dropout={config.dropout}: expected a share from 0 to below 1")
        layers: list[nn.Module] = []
        inputs = contract.shape[0]
        for hidden in config.hidden:
            outputs = scaled(hidden, config.width)
            layers += [nn.Linear(inputs, outputs, bias=config.norm != "batch"), normalisation(config.norm, outputs, 0)]
            layers += [nn.ReLU(inplace=True), nn.Dropout(config.dropout)]
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.features = inputs
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """[N, F] -> [N, features]."""
        return self.layers(x)
