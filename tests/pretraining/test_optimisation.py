"""The rate is a pure function of the step, and what is configured reaches the optimiser."""

from __future__ import annotations

import json
import math

import pytest
import torch

from brainage.config import OptimConfig
from brainage.pretraining.checkpoint import checkpoints, load_checkpoint
from brainage.pretraining.optimisation import build_optimiser, rate_factor
from brainage.pretraining.run import build_module, pretrain
from tests.scans import SimulatedScans, small_experiment


def rates(config: OptimConfig, steps_per_epoch=10, epochs=30) -> list[float]:
    factor = rate_factor(config, steps_per_epoch, steps_per_epoch * epochs)
    return [factor(step) for step in range(steps_per_epoch * epochs)]


def test_the_published_schedule_is_times_09_every_ten_epochs():
    found = rates(OptimConfig(schedule="step", step_epochs=10, step_gamma=0.9))
    assert found == pytest.approx([0.9 ** (step // 100) for step in range(300)])


def test_cosine_falls_from_one_to_nothing():
    found = rates(OptimConfig(schedule="cosine"))
    assert found[0] == 1.0
    assert found == sorted(found, reverse=True)
    assert found[150] == pytest.approx(0.5)
    assert 0 < found[-1] < 1e-3
    assert rate_factor(OptimConfig(schedule="cosine"), 10, 300)(300) == pytest.approx(0.0)


def test_warm_up_rises_evenly_and_never_starts_at_zero():
    found = rates(OptimConfig(schedule="constant", warmup_epochs=2))
    assert found[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert set(found[20:]) == {1.0}
    half = rates(OptimConfig(schedule="constant", warmup_epochs=0.5))
    assert half[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_cosine_after_a_warm_up_starts_at_one_and_ends_at_the_last_step():
    found = rates(OptimConfig(schedule="cosine", warmup_epochs=5))
    assert found[49] == found[50] == 1.0
    assert found[175] == pytest.approx(0.5 * (1 + math.cos(math.pi * 125 / 250)))


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_values_reach_the_optimiser(name, kind):
    config = OptimConfig(name=name, lr=0.3, weight_decay=0.02, momentum=0.7)
    optimiser = build_optimiser(config, [torch.nn.Parameter(torch.ones(2))])
    assert type(optimiser).__name__ == kind
    group = optimiser.param_groups[0]
    assert (group["lr"], group["weight_decay"], group.get("momentum", 0.7)) == (0.3, 0.02, 0.7)


def test_adamw_decays_apart_from_the_gradient_and_adam_within_it():
    """With gradient 0, AdamW shrinks a weight by lr x decay; Adam's penalty is scaled to a full step of lr."""
    found = {}
    for name in ("adam", "adamw"):
        weight = torch.nn.Parameter(torch.ones(1))
        optimiser = build_optimiser(OptimConfig(name=name, lr=0.1, weight_decay=0.5), [weight])
        weight.grad = torch.zeros(1)
        optimiser.step()
        found[name] = float(weight.detach())
    assert found["adamw"] == pytest.approx(1 - 0.1 * 0.5)
    assert found["adam"] == pytest.approx(1 - 0.1)


def test_the_rate_of_the_journal_is_the_one_each_step_was_made_with(tmp_path):
    overrides = ["optim.schedule=cosine", "optim.warmup_epochs=1", "optim.lr=0.01"]
    experiment = small_experiment(tmp_path, *overrides)
    data = SimulatedScans(experiment)
    run = pretrain(experiment, data)
    points = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    found = {point["step"]: point["metrics"]["train/lr"] for point in points if "train/lr" in point["metrics"]}
    steps = len(data.train_dataloader())
    factor = rate_factor(experiment.optim, steps, 3 * steps)
    # Step n of the journal is the n-th step done, which had n - 1 steps behind it.
    assert found == pytest.approx({step: 0.01 * factor(step - 1) for step in range(1, 3 * steps + 1)})


def test_clipping_bounds_the_step_of_the_weights(tmp_path):
    """Plain SGD moves the weights by rate x gradient: with a norm clipped to c, by no more than rate x c."""
    moved = {}
    for clip in (0, 0.01):
        plain = ["optim.name=sgd", "optim.momentum=0", "optim.weight_decay=0", "optim.schedule=constant", "optim.lr=1"]
        experiment = small_experiment(
            tmp_path, *plain, f"optim.clip_norm={clip}", "data.batch_size=50", "trainer.epochs=1"
        )
        data = SimulatedScans(experiment)
        assert len(data.train_dataloader()) == 1  # one step
        before = dict(build_module(experiment, data).named_parameters())
        after = load_checkpoint(checkpoints(pretrain(experiment, data).folder)[0])["state_dict"]
        squares = sum(float((after[name] - value.detach()).square().sum()) for name, value in before.items())
        moved[clip] = math.sqrt(squares)
    assert moved[0] > 0.05
    assert moved[0.01] == pytest.approx(0.01, rel=1e-3)
