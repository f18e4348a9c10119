"""Stages of every encoder, and low-rank updates that start at nothing and merge into the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from brainage.config import EncoderConfig
from brainage.downstream.low_rank import add_low_rank, merge_low_rank, stages_of
from brainage.encoders import build_encoder
from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract

VECTOR = InputContract("thickness", "vector", (12,))
VOLUME = InputContract("vbm", "volume", (1, 34, 34, 34), spacing_mm=(3.0,) * 3, origin_mm=(0.0,) * 3, axes="RAS")


def encoder_of(name, norm="batch"):
    torch.manual_seed(0)
    contract = VECTOR if name == "mlp" else VOLUME
    config = EncoderConfig(name=name, width=0.07 if name != "mlp" else 1.0, hidden=[16, 9, 5], norm=norm)
    return build_encoder(config, contract).eval(), torch.randn(2, *contract.shape)


@pytest.mark.parametrize(
    ("name", "stages"),
    [("resnet18", 5), ("resnet34", 5), ("resnet50", 5), ("densenet121", 5), ("alexnet", 3), ("mlp", 3)],
)
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_each_parameter_of_an_encoder_is_in_one_stage_in_the_order_of_the_forward_pass(name, stages, norm):
    encoder, _ = encoder_of(name, norm)
    found = stages_of(encoder)
    assert len(found) == stages
    assert [id(p) for stage in found for p in stage.parameters()] == [id(p) for p in encoder.parameters()]
    assert all(any(True for _ in stage.parameters()) for stage in found)


def test_the_stages_of_a_residual_network_are_those_of_the_paper():
    stages = stages_of(encoder_of("resnet50")[0])
    assert [sum(type(unit).__name__ == "BottleneckBlock" for unit in stage) for stage in stages] == [0, 3, 4, 6, 3]


def test_each_dense_block_is_a_stage_with_the_transition_behind_it():
    stages = stages_of(encoder_of("densenet121")[0])
    assert [sum(type(unit).__name__ == "DenseLayer" for unit in stage) for stage in stages] == [0, 6, 12, 24, 16]
    assert [type(stage[-1]).__name__ for stage in stages] == ["MaxPool3d", *["AvgPool3d"] * 3, "DenseLayer"]


@pytest.mark.parametrize("name", ["mlp", "resnet18", "alexnet"])
def test_updates_start_at_nothing_to_the_last_bit_and_merge_into_the_same_function(name):
    encoder, x = encoder_of(name)
    layers = [layer for layer in encoder.modules() if isinstance(layer, nn.Linear | nn.Conv3d)]
    names, before = sorted(encoder.state_dict()), copy.deepcopy(encoder.state_dict())
    with torch.no_grad():
        pretrained = encoder(x)
        add_low_rank(encoder, 2)
        assert torch.equal(encoder(x), pretrained)
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        updated = encoder(x)
        assert (updated - pretrained).abs().max() > 1e-3
        merge_low_rank(encoder)
        torch.testing.assert_close(encoder(x), updated, rtol=1e-6, atol=1e-6)
    assert sorted(encoder.state_dict()) == names
    for layer in layers:
        key = next(n for n, m in encoder.named_modules() if m is layer) + ".weight"
        update = (layer.weight.detach() - before[key]).flatten(1).double()
        values = torch.linalg.svdvals(update)
        assert values[0] > 1e-3
        assert values[2:].numel() == 0 or values[2:].max() < 1e-5 * values[0]


def test_only_the_updates_train():
    encoder, _ = encoder_of("mlp")
    add_low_rank(encoder, 4)
    training = {n for n, p in encoder.named_parameters() if p.requires_grad}
    ends = ("parametrizations.weight.0.down", "parametrizations.weight.0.up")
    assert training == {f"layers.{place}.{end}" for place in (0, 4, 8) for end in ends}
    assert encoder.layers[8].parametrizations.weight[0].up.shape == (5, 4)


def test_a_rank_above_the_layers_own_is_cut_to_it():
    layer = nn.Linear(3, 8)
    add_low_rank(layer, 64)
    assert layer.parametrizations.weight[0].down.shape == (3, 3)


def test_a_wrong_rank_and_a_network_without_layers_are_refused():
    with pytest.raises(ConfigError, match=r"finetune\.rank=0"):
        add_low_rank(nn.Linear(2, 2), 0)
    with pytest.raises(ConfigError, match="no linear layer or convolution"):
        add_low_rank(nn.ReLU(), 1)
