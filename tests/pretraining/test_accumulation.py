"""A step of several batches has their mean gradient, and is resumed between steps as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from brainage.config import load_experiment, run_folder
from brainage.data.sampling import StepBatches
from brainage.pretraining.accumulation import Accumulation
from brainage.pretraining.checkpoint import PAYLOAD, checkpoints, load_checkpoint
from brainage.pretraining.plan import training_cost
from brainage.pretraining.run import build_module, pretrain, start_up
from tests.pretraining.groups import together
from tests.pretraining.test_ranks import assert_same_run
from tests.pretraining.test_resume import assert_equal_weights, final_weights, journal
from tests.pretraining.test_run import interrupted
from tests.scans import SimulatedScans, small_experiment

PLAIN = ("encoder.norm=none", "encoder.head=mlp", "optim.name=sgd", "optim.momentum=0", "optim.weight_decay=0")
# 4 batches of 5 an epoch: steps of 3 and 1
SHARED = ("trainer.accumulate=3", "checkpoint.every_steps=1", "checkpoint.keep=9", "optim.name=sgd")
FALLEN = ("trainer.accumulate=3", "encoder.dropout=0.2", "checkpoint.every_steps=1", "health.every_steps=2")


def after(tmp_path: Path, *overrides: str) -> dict[str, torch.Tensor]:
    experiment = small_experiment(tmp_path, *PLAIN, *overrides)
    return final_weights(pretrain(experiment, SimulatedScans(experiment)).folder)


@pytest.mark.parametrize("loss", ["exp", "l1"])
def test_a_step_of_several_batches_takes_the_mean_of_their_gradients(tmp_path, loss):
    experiment = small_experiment(
        tmp_path, *PLAIN, f"loss.name={loss}", "trainer.accumulate=3", "trainer.epochs=2", "optim.lr=0.01"
    )
    data = SimulatedScans(experiment)
    found = final_weights(pretrain(experiment, data).folder)

    module = build_module(experiment, data)
    batches = list(data.train_dataloader().batch_sampler)
    assert len(batches) == 4
    order = StepBatches(len(data.rows("train")), 5, experiment.seed)
    dataset = data.train_dataloader().dataset
    for numbers in ([0, 1, 2], [3], [4, 5, 6], [7]):
        module.zero_grad()
        grads = []
        for number in numbers:
            batch = dataset.__getitems__(order.batch(number))
            value, _ = module.loss_of(module.trunk(batch, number), batch)
            grads.append(torch.autograd.grad(value, list(module.parameters())))
        with torch.no_grad():
            for weight, *each in zip(module.parameters(), *grads, strict=True):
                weight -= 0.01 * torch.stack(each).mean(0)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(("loss", "equal"), [("l1", True), ("exp", False)])
def test_it_is_a_bigger_batch_where_nobody_is_compared_and_only_there(tmp_path, loss, equal):
    # without noise, since the views of a scan follow from the number of its batch
    keys = (f"loss.name={loss}", "trainer.epochs=1", "optim.lr=0.01", "augment.noise_p=0")
    several = after(tmp_path, *keys, "trainer.accumulate=4")
    one = after(tmp_path, *keys, "data.batch_size=20")
    start = build_module(small_experiment(tmp_path, *PLAIN, *keys), SimulatedScans()).state_dict()
    moved = sum(float((one[name] - start[name]).norm()) for name in start)
    apart = sum(float((one[name] - several[name]).norm()) for name in start)
    assert moved > 0
    assert (apart < 1e-4 * moved) == equal
    assert equal or apart > 1e-2 * moved


def test_an_interrupted_run_of_several_batches_a_step_ends_as_the_undisturbed_one(tmp_path, monkeypatch):
    undisturbed = pretrain(small_experiment(tmp_path / "one", *FALLEN), SimulatedScans())
    experiment = small_experiment(tmp_path / "two", *FALLEN)
    interrupted(monkeypatch, experiment, SimulatedScans(), step=4)
    resumed_from = load_checkpoint(checkpoints(run_folder(experiment))[0])
    assert resumed_from[PAYLOAD]["step"] == resumed_from["global_step"] == 3  # in mid-epoch
    resumed = pretrain(experiment, SimulatedScans())
    assert_equal_weights(final_weights(resumed.folder), final_weights(undisturbed.folder))
    found, expected = journal(resumed.folder), journal(undisturbed.folder)
    assert {step for step, name in expected if name == "train/loss"} == {1, 2, 3, 4, 5, 6}  # 2 steps an epoch
    assert {step for step, name in expected if name == "val/loss"} == {2, 4, 6}
    assert {k: v for k, v in found.items() if not k[1].startswith("speed/")} == {
        k: v for k, v in expected.items() if not k[1].startswith("speed/")
    }


def train_twice(rank: int, ranks: int, runs: Path) -> list[Path]:
    """Undisturbed, and continued from the checkpoint in mid-epoch."""
    keys = (*SHARED, f"trainer.devices={ranks}")
    whole = small_experiment(runs / "whole", *keys)
    first = pretrain(whole, SimulatedScans(whole)).folder
    middle = next(path for path in checkpoints(first) if path.name == "step_00000003.ckpt")
    again = small_experiment(runs / "again", *keys, f"checkpoint.resume={middle}")
    return [first, pretrain(again, SimulatedScans(again)).folder]


def test_two_ranks_average_their_batches_and_resume_as_one_does(tmp_path):
    whole, again = together(2, train_twice, tmp_path)[0]
    assert_equal_weights(final_weights(again), final_weights(whole))
    alone = small_experiment(tmp_path / "alone", *SHARED)
    assert_same_run(whole, pretrain(alone, SimulatedScans(alone)).folder)


def test_the_panel_and_the_plan_count_steps_of_the_optimiser(tmp_path):
    experiment = small_experiment(tmp_path, "trainer.accumulate=3")
    data = SimulatedScans(experiment)
    module = build_module(experiment, data)
    lines = start_up(experiment, data, module, tmp_path, None)
    assert "10 samples, x 3 batches averaged" in lines["batch"]
    assert "2 steps an epoch, 6 in all" in lines["batch"]
    cost = training_cost(experiment, data.contract, len(data.rows("train")))
    assert (cost.steps_per_epoch, cost.steps, cost.samples_a_step) == (2, 6, 30)


def test_an_epoch_of_fewer_batches_is_one_step_of_them():
    plan = Accumulation(batches=2, together=5)
    assert (plan.steps, plan.size(1), plan.ends(0), plan.ends(1), plan.first_batch(3)) == (1, 2, False, True, 6)


def test_accumulation_is_part_of_what_is_learnt():
    one, other = (run_folder(load_experiment("demo", [f"trainer.accumulate={k}"])) for k in (1, 2))
    assert one != other
