"""Every encoder: published size, shapes, width, normalisation, and refusals."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brainage.config import EncoderConfig
from brainage.encoders import ENCODERS, build_encoder, build_head
from brainage.encoders.layers import avg_pool_by_slices, group_count, max_pool_by_slices
from brainage.encoders.names import ENCODER_NAMES, VECTOR_NAMES, VOLUME_NAMES
from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract

VECTOR = InputContract("thickness", "vector", (68,))


def volume(*grid: int) -> InputContract:
    return InputContract("vbm", "volume", (1, *grid), spacing_mm=(3.0,) * 3, origin_mm=(0.0,) * 3, axes="RAS")


def parameters(module: nn.Module) -> int:
    return sum(values.numel() for values in module.parameters())


def residual_parameters(depths: tuple[int, ...], bottleneck: bool) -> int:
    """Weights and normalisation pairs of a residual network, summed layer by layer from the published table."""
    convolutions = [(1, 64, 7)]
    inputs = 64
    for stage, depth in enumerate(depths):
        channels = 64 * 2**stage
        outputs = 4 * channels if bottleneck else channels
        for block in range(depth):
            if bottleneck:
                convolutions += [(inputs, channels, 1), (channels, channels, 3), (channels, outputs, 1)]
            else:
                convolutions += [(inputs, channels, 3), (channels, outputs, 3)]
            if block == 0 and (stage > 0 or bottleneck):
                convolutions.append((inputs, outputs, 1))
            inputs = outputs
    return sum(a * b * kernel**3 + 2 * b for a, b, kernel in convolutions)


@pytest.mark.parametrize(
    ("name", "features", "body", "head"),
    [
        ("resnet18", 512, 33_160_000, 328_320),
        ("resnet34", 512, residual_parameters((3, 4, 6, 3), bottleneck=False), 328_320),
        ("resnet50", 2048, residual_parameters((3, 4, 6, 3), bottleneck=True), 2048 * 2049 + 2049 * 128),
        ("densenet121", 1024, 11_240_576, 1024 * 1025 + 1025 * 128),
        ("alexnet", 128, 2_553_728, 33_024),
    ],
)
def test_networks_have_the_published_size(name, features, body, head):
    config = EncoderConfig(name=name, head="mlp")
    with torch.device("meta"):
        encoder = build_encoder(config, volume(61, 73, 61))
        assert (encoder.features, parameters(encoder)) == (features, body)
        assert parameters(build_head(config, features)) == head


def test_the_registry_holds_exactly_the_names_the_configuration_knows():
    assert tuple(ENCODERS) == ENCODER_NAMES
    assert {name for name, encoder in ENCODERS.items() if encoder.kind == "volume"} == set(VOLUME_NAMES)
    assert {name for name, encoder in ENCODERS.items() if encoder.kind == "vector"} == set(VECTOR_NAMES)


def test_the_names_are_importable_without_torch():
    code = "import sys, brainage.encoders.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("name", VOLUME_NAMES)
def test_an_encoder_trains_on_a_small_grid_and_tells_volumes_apart(name, norm):
    torch.manual_seed(0)
    contract = volume(33, 36, 34)
    encoder = build_encoder(EncoderConfig(name=name, width=0.125, norm=norm), contract)
    x = torch.randn(4, *contract.shape)
    z = encoder(x)
    assert z.shape == (4, encoder.features)
    assert torch.isfinite(z).all()
    assert (z >= 0).all()  # every trunk ends in ReLU and pooling
    assert torch.pdist(z).min() > 1e-3 * z.norm(dim=1).mean()
    z.square().sum().backward()
    silent = [key for key, values in encoder.named_parameters() if values.ndim > 1 and not values.grad.abs().sum() > 0]
    # Without normalisation the last layers, of one voxel and few channels here, may lie wholly behind a closed ReLU.
    assert len(silent) <= (4 if norm == "none" else 0)


@pytest.mark.parametrize("name", VOLUME_NAMES)
@pytest.mark.parametrize("width", [0.3, 0.01])
def test_any_width_fits_group_norm(name, width):
    contract = volume(33, 33, 33)
    encoder = build_encoder(EncoderConfig(name=name, width=width, norm="group"), contract)
    with torch.no_grad():
        assert encoder(torch.randn(2, *contract.shape)).shape == (2, encoder.features)


def test_groups_divide_any_number_of_channels_and_hold_eight_where_there_are_eight():
    for channels in range(1, 1100):
        groups = group_count(channels)
        assert channels % groups == 0
        assert groups <= 32
        assert channels // groups >= min(8, channels)


@pytest.mark.parametrize("name", ["densenet121", "alexnet"])
def test_the_smallest_grid_of_a_network_is_exact(name):
    config = EncoderConfig(name=name, width=0.1, norm="group")
    edge = ENCODERS[name].minimum_edge
    encoder = build_encoder(config, volume(edge, edge, edge)).eval()
    with torch.no_grad():
        assert encoder(torch.randn(1, 1, edge, edge, edge)).shape == (1, encoder.features)
        with pytest.raises(RuntimeError):
            encoder(torch.randn(1, 1, edge, edge, edge - 1))
    with pytest.raises(ConfigError, match=rf"at least {edge} voxels .* {edge}x{edge}x{edge - 1} .*resnet18"):
        build_encoder(config, volume(edge, edge, edge - 1))


def test_an_encoder_of_the_wrong_kind_is_refused_with_those_that_fit():
    with pytest.raises(ConfigError, match=r"expected volumes, found vectors of 68 .*fit these samples: mlp$"):
        build_encoder(EncoderConfig(name="resnet18"), VECTOR)
    with pytest.raises(ConfigError, match=r"expected vectors, found volumes .*: resnet18, resnet34, resnet50, densen"):
        build_encoder(EncoderConfig(name="mlp"), volume(33, 33, 33))
    with pytest.raises(ConfigError, match=r"did you mean .resnet"):
        build_encoder(EncoderConfig(name="resnet"), volume(33, 33, 33))


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_the_mlp_gives_its_last_hidden_width_times_width(norm):
    config = EncoderConfig(name="mlp", hidden=[40, 24], width=0.5, norm=norm, dropout=0.2)
    encoder = build_encoder(config, VECTOR)
    assert encoder.features == 12
    assert encoder(torch.randn(5, 68)).shape == (5, 12)
    norms = 2 * (20 + 12) if norm != "none" else 0
    biases = 20 + 12 if norm != "batch" else 0
    assert parameters(encoder) == 68 * 20 + 20 * 12 + norms + biases


@pytest.mark.parametrize("change", [{"hidden": []}, {"hidden": [0]}, {"dropout": 1.0}])
def test_an_mlp_that_cannot_be_built_is_refused(change):
    with pytest.raises(ConfigError, match="encoder\\."):
        build_encoder(replace(EncoderConfig(name="mlp"), **change), VECTOR)


@pytest.mark.parametrize("head", ["linear", "mlp", "mlp_bn"])
def test_heads_map_features_to_the_embedding(head):
    config = EncoderConfig(head=head, head_dim=16)
    assert build_head(config, 24)(torch.randn(3, 24)).shape == (3, 16)


def test_batch_norm_keeps_the_head_from_starting_collapsed():
    """Features of untrained encoders: one vector shared by all brains plus a little of their own."""
    torch.manual_seed(0)
    features = torch.rand(1, 256) + 1e-3 * torch.randn(32, 256)

    def mean_cosine(head: str) -> float:
        with torch.no_grad():
            z = F.normalize(build_head(EncoderConfig(head=head), 256)(features))
        return float((z @ z.T)[~torch.eye(32, dtype=torch.bool)].mean())

    assert mean_cosine("mlp") > 0.999
    assert mean_cosine("mlp_bn") < 0.7


@pytest.mark.parametrize("name", VOLUME_NAMES)
def test_without_normalisation_a_network_keeps_the_scale_of_its_input(name):
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(name=name, width=0.125, norm="none"), volume(61, 61, 61))
    with torch.no_grad():
        z = encoder(torch.randn(2, 1, 61, 61, 61))
    assert 0.1 < z.square().mean().sqrt() < 10


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (3, 3, 0)])
def test_pooling_by_slices_equals_max_pooling(kernel, stride, padding):
    x = torch.randn(2, 3, 11, 9, 10, dtype=torch.float64, requires_grad=True)
    expected = F.max_pool3d(x.relu(), kernel, stride, padding)
    found = max_pool_by_slices(x.relu(), kernel, stride, padding)
    assert torch.equal(found, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((pooled * weights).sum(), x)[0] for pooled in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)


def test_pooling_by_slices_equals_mean_pooling():
    x = torch.randn(2, 3, 11, 9, 10, dtype=torch.float64)
    torch.testing.assert_close(avg_pool_by_slices(x, 2), F.avg_pool3d(x, 2), rtol=0, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", VOLUME_NAMES)
def test_every_volume_encoder_trains_deterministically_on_a_gpu(name, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    contract = volume(33, 33, 33)
    encoder = build_encoder(EncoderConfig(name=name, width=0.125), contract).cuda()
    x = torch.randn(4, *contract.shape, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (torch.autograd.grad(encoder(x).square().sum(), list(encoder.parameters())) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
