"""The plan's arithmetic: steps, and memory and time that grow with what they must grow with."""

from __future__ import annotations

import pytest

from brainage.imaging.contract import InputContract
from brainage.pretraining.checkpoint import new_module
from brainage.pretraining.plan import memory_gib, training_cost
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


@pytest.mark.parametrize("chunk", [0, 4])
def test_the_batch_is_counted_as_it_is_stored_also_where_it_is_encoded_in_chunks(chunk):
    def gib(scans: int) -> list[float]:
        keys = ["encoder.name=resnet18", "encoder.width=0.125", "data.intensity=zscore", f"data.batch_size={scans}"]
        experiment = small_experiment("runs", *keys, f"trainer.chunk_samples={chunk}")
        return [memory_gib(experiment, volumes(16), scans), training_cost(experiment, volumes(16), 4000).memory_gib]

    stored = 16**3 * 2 * 1000 / 2**30  # a thousand scans more, of two bytes a voxel
    for few, many in zip(gib(1000), gib(2000), strict=True):
        assert many - few == pytest.approx(stored, rel=1e-3) if chunk else many - few > 5 * stored


@pytest.mark.parametrize("key", ["trainer.ema_decay=0.9"])
def test_an_average_of_the_weights_is_one_copy_more(key):
    hidden = ["encoder.hidden=[512,512]", "data.batch_size=2", "augment.views=1"]
    plain, averaged = (small_experiment("runs", *hidden, *more) for more in ([], [key]))
    weights = sum(p.numel() * p.element_size() for p in new_module(plain, VECTORS).parameters())
    more = memory_gib(averaged, VECTORS, 2) - memory_gib(plain, VECTORS, 2)
    assert more * 2**30 == pytest.approx(weights)


@pytest.mark.parametrize(("name", "copies"), [("sgd", 3), ("adam", 4), ("adamw", 4)])
def test_each_optimiser_is_counted_with_its_state(name, copies):
    hidden = ["encoder.hidden=[512,512]", "data.batch_size=2", "augment.views=1"]
    experiment = small_experiment("runs", f"optim.name={name}", *hidden)
    weights = sum(p.numel() * p.element_size() for p in new_module(experiment, VECTORS).parameters())
    found = training_cost(experiment, VECTORS, 23).memory_gib * 2**30
    assert copies * weights <= found < (copies + 0.5) * weights
