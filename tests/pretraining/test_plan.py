"""The plan's arithmetic: steps, and memory and time that grow with what they must grow with."""

from __future__ import annotations

import pytest

from brainage.imaging.contract import InputContract
from brainage.pretraining.checkpoint import new_module
from brainage.pretraining.plan import training_cost
from tests.scans import small_experiment

VECTORS = InputContract("features", "vector", (12,))


def volumes(edge: int) -> InputContract:
    return InputContract("maps", "volume", (1, edge, edge, edge), spacing_mm=(8.0,) * 3, axes="RAS")


def test_steps_are_those_of_the_training_order():
    cost = training_cost(small_experiment("runs"), VECTORS, train_scans=23)
    assert (cost.steps_per_epoch, cost.steps, cost.samples_a_step) == (4, 12, 10)  # 23 // 5, 3 epochs, 2 views
    fewer = training_cost(small_experiment("runs"), VECTORS, train_scans=3)
    assert (fewer.steps_per_epoch, fewer.samples_a_step) == (1, 6)


def test_memory_holds_weights_and_optimiser_and_grows_with_the_volume():
    overrides = ["encoder.name=resnet18", "encoder.width=0.125", "data.intensity=zscore"]
    experiment = small_experiment("runs", *overrides)
    small, large = (training_cost(experiment, volumes(edge), 23) for edge in (16, 32))
    module = new_module(experiment, volumes(16))
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    assert small.memory_gib * 2**30 > 4 * weights  # weights, gradients, Adam's two moments
    assert 4 < (large.memory_gib * 2**30 - 4 * weights) / (small.memory_gib * 2**30 - 4 * weights) < 12  # 8 times
    assert 0 < small.seconds < large.seconds


@pytest.mark.parametrize(("name", "copies"), [("sgd", 3), ("adam", 4), ("adamw", 4)])
def test_each_optimiser_is_counted_with_its_state(name, copies):
    hidden = ["encoder.hidden=[512,512]", "data.batch_size=2", "augment.views=1"]
    experiment = small_experiment("runs", f"optim.name={name}", *hidden)
    weights = sum(p.numel() * p.element_size() for p in new_module(experiment, VECTORS).parameters())
    found = training_cost(experiment, VECTORS, 23).memory_gib * 2**30
    assert copies * weights <= found < (copies + 0.5) * weights
