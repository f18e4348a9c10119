"""Layout, TF32 and compilation change how a network is computed; what they cannot do here is said."""

from __future__ import annotations

import pytest
import torch

from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract
from brainage.pretraining.checkpoint import new_module
from brainage.pretraining.compiled import Compiled
from brainage.pretraining.run import build_module, pretrain
from brainage.pretraining.trainer import build_trainer, guard
from brainage.runtime.precision import set_tf32
from tests.pretraining.test_resume import assert_equal_weights, final_weights
from tests.scans import SimulatedScans, small_experiment

VOLUME = InputContract("maps", "volume", (1, 16, 16, 16), spacing_mm=(8.0,) * 3, axes="RAS")


@pytest.fixture
def tf32():
    """What torch allows, put back afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def module_of(*words: str):
    torch.manual_seed(0)
    keys = ("data.intensity=zscore", "encoder.name=resnet18", "encoder.width=0.125")
    return new_module(small_experiment("runs", *keys, *words), VOLUME)


def volumes() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(3, *VOLUME.shape, generator=draw),
        "age_years": torch.tensor([20.0, 40.0, 60.0]),
        "subject": torch.arange(3),
        "site": torch.zeros(3, dtype=torch.int64),
        "key": torch.arange(3),
    }


def test_channels_last_is_the_layout_of_convolutions_and_changes_no_result():
    found = []
    for words in ([], ["trainer.channels_last=true"]):
        module = module_of(*words)
        seen: list[bool] = []
        for layer in module.encoder.modules():
            if isinstance(layer, torch.nn.Conv3d):
                layer.register_forward_hook(
                    lambda layer, _inputs, output, seen=seen: seen.extend(
                        x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
                        for x in (output, layer.weight)
                        if min(x.shape[1], x[0, 0].numel()) > 1  # else both layouts are one
                    )
                )
        loss = module.training_step(volumes(), 0)
        loss.backward()
        assert seen
        assert set(seen) == {bool(words)}
        found.append((loss.detach(), [p.grad.contiguous() for p in module.parameters()]))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-3)


def test_weights_travel_between_layouts():
    last = module_of("trainer.channels_last=true")
    plain = module_of()
    plain.load_state_dict(last.state_dict())
    last.load_state_dict(plain.state_dict())
    weight = next(layer for layer in last.encoder.modules() if isinstance(layer, torch.nn.Conv3d)).weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_layout_of_volumes_is_refused_for_vectors(tmp_path):
    experiment = small_experiment(tmp_path, "trainer.channels_last=true")
    with pytest.raises(ConfigError, match=r"trainer\.channels_last: expected volumes, found vectors"):
        pretrain(experiment, SimulatedScans(experiment))
    guard(experiment, VOLUME)  # says nothing


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_set_both_ways_whatever_it_was(tf32, capsys, allowed):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not allowed
    experiment = small_experiment("runs", f"trainer.tf32={allowed}")
    build_trainer(experiment, [])
    assert tf32() == (allowed, allowed)
    said = capsys.readouterr().err
    assert ("trainer.tf32=true: no effect on cpu" in said.replace("\n", " ")) == allowed


def test_losses_are_exact_where_networks_may_round(tf32, monkeypatch):
    module = module_of("trainer.tf32=true")
    set_tf32(True, torch.device("cuda"))
    seen, loss = [], module.loss

    def note(*arguments, **options):
        seen.append(tf32())
        return loss(*arguments, **options)

    monkeypatch.setattr(module, "loss", note)
    module.training_step(volumes(), 0)
    assert seen == [(False, True)]
    assert tf32() == (True, True)


def test_nothing_is_said_of_tf32_on_a_gpu(tf32, capsys):
    set_tf32(True, torch.device("cuda"))
    assert capsys.readouterr().err == ""


def refuse(function, **options):
    raise RuntimeError("Dynamo is not supported on Python 3.99")


def fail_later(function, **options):
    def run(x):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore")

    return run


@pytest.mark.parametrize("compiler", [refuse, fail_later], ids=["when asked for", "at the first batch"])
def test_a_failing_compiler_leaves_the_training_as_it_would_be_without(tmp_path, monkeypatch, capsys, compiler):
    plain = small_experiment(tmp_path / "plain", "trainer.epochs=1")
    expected = final_weights(pretrain(plain, SimulatedScans(plain)).folder)
    monkeypatch.setattr(torch, "compile", compiler)
    experiment = small_experiment(tmp_path / "compiled", "trainer.epochs=1", "trainer.compile=true")
    found = final_weights(pretrain(experiment, SimulatedScans(experiment)).folder)
    assert_equal_weights(found, expected)
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.count("torch.compile failed (RuntimeError") == 1
    assert "goes on without it" in " ".join(said.split())


def test_a_batch_that_the_encoder_refuses_is_not_blamed_on_the_compiler_for_ever(monkeypatch):
    monkeypatch.setattr(torch, "compile", fail_later)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Compiled(torch.nn.Linear(3, 2))(torch.zeros(1, 4))


def test_memory_that_ran_out_is_no_failure_of_the_compiler(monkeypatch):
    def out_of_memory(function, **options):
        def run(x):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return run

    monkeypatch.setattr(torch, "compile", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        Compiled(torch.nn.Linear(3, 2))(torch.zeros(1, 3))


@pytest.mark.slow  # the compiler takes half a minute
def test_a_compiled_network_computes_what_it_computes():
    experiment = small_experiment("runs", "trainer.compile=true", "encoder.dropout=0")
    compiled = build_module(experiment, SimulatedScans(experiment))
    plain = build_module(small_experiment("runs", "encoder.dropout=0"), SimulatedScans())
    samples = torch.randn(4, 12)
    torch.testing.assert_close(compiled.eval().embed(samples), plain.eval().embed(samples))
