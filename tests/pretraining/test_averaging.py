"""The averaged weights: by hand, resumed, validated and evaluated."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch

from brainage.pretraining import run as running
from brainage.pretraining.averaging import AVERAGED, Averaging, WeightAverage
from brainage.pretraining.checkpoint import checkpoints, load_checkpoint, load_module
from brainage.pretraining.run import build_module, pretrain
from tests.pretraining.groups import together
from tests.pretraining.test_resume import assert_equal_weights, final_weights, journal
from tests.pretraining.test_run import interrupted
from tests.scans import SimulatedScans, small_experiment

DECAY = ("trainer.ema_decay=0.9", "encoder.dropout=0.2", "optim.lr=0.01")


def averaged(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints(folder)[0])[AVERAGED]["weights"]


def trained(experiment, monkeypatch=None, *watchers: L.Callback):
    """A run; `watchers` look on behind everything else."""
    build = running.build_trainer
    if monkeypatch:
        monkeypatch.setattr(running, "build_trainer", lambda e, own, **o: build(e, [*own, *watchers], **o))
    return pretrain(experiment, SimulatedScans(experiment)).folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    return trained(small_experiment(tmp_path_factory.mktemp("one"), *DECAY))


def test_it_is_the_mean_over_steps_that_the_decay_weighs(tmp_path, monkeypatch):
    seen: list[dict[str, torch.Tensor]] = []

    class Note(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step > len(seen):
                seen.append({name: weight.detach().clone() for name, weight in module.named_parameters()})

    folder = trained(small_experiment(tmp_path, *DECAY, "trainer.accumulate=2"), monkeypatch, Note())
    assert len(seen) == 6  # of the optimiser
    weights = torch.tensor([0.9 ** (6 - step) for step in range(1, 7)])
    for name, found in averaged(folder).items():
        expected = torch.stack([step[name] for step in seen]).flatten(1).T @ (weights / weights.sum())
        torch.testing.assert_close(found.flatten(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(final_weights(folder)[name], seen[-1][name])  # those of training stay beside it


def test_a_decay_of_nothing_is_the_last_weight_and_of_nearly_one_the_plain_mean():
    module = torch.nn.Linear(1, 1, bias=False)
    for decay, expected in ((0.0, 9.0), (1 - 1e-9, 4.0)):
        average = WeightAverage(decay)
        for value in (1.0, 2.0, 9.0):
            module.weight.data.fill_(value)
            average.update(module)
        assert average.weights["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_an_interrupted_run_ends_with_the_average_of_the_undisturbed_one(tmp_path, monkeypatch, undisturbed):
    experiment = small_experiment(tmp_path, *DECAY)
    interrupted(monkeypatch, experiment, SimulatedScans(), step=7)  # its last checkpoint, of step 6, is in mid-epoch
    resumed = trained(experiment)
    assert_equal_weights(averaged(resumed), averaged(undisturbed))
    assert_equal_weights(final_weights(resumed), final_weights(undisturbed))
    found, expected = journal(resumed), journal(undisturbed)
    assert {k: v for k, v in found.items() if k[1].startswith("val/")} == {
        k: v for k, v in expected.items() if k[1].startswith("val/")
    }


def test_the_average_is_what_is_loaded_with_the_buffers_of_training(undisturbed):
    module, _ = load_module(checkpoints(undisturbed)[0])
    last, average, found = final_weights(undisturbed), averaged(undisturbed), module.state_dict()
    assert set(average) == {name for name, _ in module.named_parameters()}
    assert all(torch.equal(found[name], average[name]) for name in average)
    assert not torch.equal(average["encoder.layers.0.weight"], last["encoder.layers.0.weight"])
    buffers = set(found) - set(average)
    assert any("running_mean" in name for name in buffers)
    assert all(torch.equal(found[name], last[name]) for name in buffers)


def test_validation_is_of_the_average(tmp_path, undisturbed):
    module, payload = load_module(checkpoints(undisturbed)[0])
    data = SimulatedScans(payload.experiment)
    with torch.no_grad():
        for batch in data.val_dataloader():
            module.validation_step(batch, 0)
    assert journal(undisturbed)[12, "val/loss"] == pytest.approx(module.validation_metrics()["val/loss"], rel=1e-6)


def test_the_weights_that_train_are_those_of_a_run_without_average(tmp_path, undisturbed):
    without = trained(small_experiment(tmp_path, *DECAY, "trainer.ema_decay=0"))
    assert_equal_weights(final_weights(undisturbed), final_weights(without))
    assert AVERAGED not in load_checkpoint(checkpoints(without)[0])


def averages_of_rank(rank: int, ranks: int, runs: Path) -> dict[str, torch.Tensor]:
    experiment = small_experiment(runs, "trainer.ema_decay=0.9", "optim.name=sgd", f"trainer.devices={ranks}")
    found: list[Averaging] = []
    build = running.build_trainer
    running.build_trainer = lambda e, own, **o: (
        found.extend(c for c in own if isinstance(c, Averaging)) or build(e, own, **o)
    )
    pretrain(experiment, SimulatedScans(experiment))
    return found[0].average.weights


def test_all_ranks_have_the_average_of_one_process(tmp_path):
    first, second = together(2, averages_of_rank, tmp_path / "two")
    assert_equal_weights(second, first)
    alone = trained(small_experiment(tmp_path / "one", "trainer.ema_decay=0.9", "optim.name=sgd"))
    for name, value in averaged(alone).items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-4)


def test_a_module_keeps_its_own_weights_behind_two_exchanges():
    experiment = small_experiment("runs")
    module = build_module(experiment, SimulatedScans(experiment))
    average = WeightAverage(0.5)
    average.update(module)
    with torch.no_grad():
        next(module.parameters()).add_(1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    average.exchange(module)
    assert not torch.equal(next(module.parameters()), next(iter(before.values())))
    average.exchange(module)
    assert_equal_weights(module.state_dict(), before)
