"""The registry of encoders, and the one place that checks whether an encoder can read a contract."""

from __future__ import annotations

from brainage.config import EncoderConfig, nearest
from brainage.encoders.alexnet import AlexNet
from brainage.encoders.densenet import DenseNet121
from brainage.encoders.layers import Encoder
from brainage.encoders.mlp import MLP
from brainage.encoders.resnet import ResNet18, ResNet34, ResNet50
from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract

# A new encoder: one file with a subclass of Encoder, one line here, one name in names.py.
ENCODERS: dict[str, type[Encoder]] = {
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "densenet121": DenseNet121,
    "alexnet": AlexNet,
    "mlp": MLP,
}


def build_encoder(config: EncoderConfig, contract: InputContract) -> Encoder:
    """A freshly initialised encoder: [N, *contract.shape] -> [N, encoder.features].

    Raises ConfigError when the name is unknown, when the encoder takes volumes and the contract holds vectors (or the
    reverse), and when the grid is too small for the encoder; the message lists the encoders that fit.
    """
    if config.name not in ENCODERS:
        raise ConfigError(f"encoder.name={config.name}: unknown{nearest(config.name, list(ENCODERS))}")
    encoder = ENCODERS[config.name]
    fitting = ", ".join(name for name in ENCODERS if _misfit(ENCODERS[name], contract) is None) or "none"
    misfit = _misfit(encoder, contract)
    if misfit:
        raise ConfigError(
            f"encoder.name={config.name}: {misfit} ({contract.modality}); encoders that fit these samples: {fitting}"
        )
    return encoder(config, contract)


def _misfit(encoder: type[Encoder], contract: InputContract) -> str | None:
    """Why this encoder cannot read these samples, or None if it can."""
    size = "x".join(str(n) for n in contract.shape[1:] or contract.shape)
    if encoder.kind != contract.kind:
        return f"expected {encoder.kind}s, found {contract.kind}s of {size} values"
    if encoder.kind == "volume" and min(contract.shape[1:]) < encoder.minimum_edge:
        return f"expected at least {encoder.minimum_edge} voxels along every axis, found a grid of {size}"
    return None
