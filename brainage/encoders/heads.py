"""Projection heads: trunk features [N, F] -> the embedding [N, D] that a contrastive loss sees.

The outputs are not normalised: the losses do that.
"""

from __future__ import annotations

from torch import nn

from brainage.config import EncoderConfig
from brainage.encoders.layers import initialise
from brainage.errors import ConfigError


def build_head(config: EncoderConfig, features: int) -> nn.Sequential:
    """The head named by `encoder.head`, from `features` to `encoder.head_dim` values.

    `mlp` is the published Linear-ReLU-Linear with `features` hidden units (328,320 parameters behind ResNet-18).
    `mlp_bn` normalises the hidden layer over the batch: untrained features of two brains are nearly equal, so the
    embedding of `mlp` starts collapsed, with vanishing gradients; subtracting the batch mean spreads it.
    """
    if config.head_dim < 1:
        raise ConfigError(f"encoder.head_dim={config.head_dim}: expected 1 or more")
    if config.head == "linear":
        layers: list[nn.Module] = [nn.Linear(features, config.head_dim)]
    elif config.head == "mlp":
        layers = [nn.Linear(features, features), nn.ReLU(), nn.Linear(features, config.head_dim)]
    elif config.head == "mlp_bn":
        hidden = [nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()]
        layers = [*hidden, nn.Linear(features, config.head_dim)]
    else:
        raise ConfigError(f"encoder.head={config.head}: expected mlp, mlp_bn or linear")
    head = nn.Sequential(*layers)
    initialise(head)
    return head
