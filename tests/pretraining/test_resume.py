"""A run that is killed and started again ends with the weights of an undisturbed one, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from brainage.config import load_experiment, run_folder
from brainage.errors import TrainingStopped
from brainage.pretraining.checkpoint import checkpoints, last_good, load_checkpoint
from brainage.pretraining.run import pretrain
from tests.scans import SimulatedScans, small_experiment

KILLED = """
import os, signal, sys
import lightning as L
from brainage.pretraining import run
from tests.scans import SimulatedScans, small_experiment

class Kill(L.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

build = run.build_trainer
run.build_trainer = lambda experiment, callbacks, **options: build(experiment, [*callbacks, Kill()], **options)
run.pretrain(small_experiment(sys.argv[1], *sys.argv[3:]), SimulatedScans())
"""


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints(folder)[0])["state_dict"]


def assert_equal_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        assert torch.equal(found[name], weights), f"{name} differs by {(found[name] - weights).abs().max()}"


def journal(folder: Path) -> dict[tuple[int, str], float]:
    points: dict[tuple[int, str], float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for name, value in entry["metrics"].items():
            assert (entry["step"], name) not in points, f"{name} at step {entry['step']} twice"
            points[entry["step"], name] = value
    return points


def kill_at(step: int, runs: Path, *overrides: str) -> None:
    command = [sys.executable, "-c", KILLED, str(runs), str(step), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == -9, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("overrides", "kills"),
    [
        (
            ["loss.name=exp", "health.every_steps=4"],
            [7],
        ),  # its last checkpoint, of step 6, is in mid-epoch and between two looks
        (
            ["loss.name=l1", "encoder.dropout=0.2", "optim.name=sgd", "optim.schedule=cosine"],
            [4, 8],
        ),  # at epochs' ends, twice
    ],
    ids=["contrastive", "supervised"],
)
def test_a_run_that_was_killed_ends_with_the_weights_of_an_undisturbed_one(tmp_path, overrides, kills):
    undisturbed = pretrain(small_experiment(tmp_path / "one", *overrides), SimulatedScans())
    for step in kills:
        kill_at(step, tmp_path / "two", *overrides)
    resumed = pretrain(small_experiment(tmp_path / "two", *overrides), SimulatedScans())

    assert_equal_weights(final_weights(resumed.folder), final_weights(undisturbed.folder))
    deterministic = ("train/", "val/", "health/")
    found, expected = journal(resumed.folder), journal(undisturbed.folder)
    assert found.keys() == expected.keys()
    assert {k: v for k, v in found.items() if k[1].startswith(deterministic)} == {
        k: v for k, v in expected.items() if k[1].startswith(deterministic)
    }


def test_a_resumed_run_goes_on_counting_the_looks_that_will_stop_it(tmp_path):
    collapsed = ["health.every_steps=1", "health.min_effective_rank=100", "health.patience=8"]  # nobody reaches 100
    kill_at(5, tmp_path, *collapsed)  # its last checkpoint is of step 4
    with pytest.raises(TrainingStopped, match=r"health step 8: .*collapsed for 8 looks"):
        pretrain(small_experiment(tmp_path, *collapsed), SimulatedScans())


def test_another_seed_gives_other_weights(tmp_path):
    one = pretrain(small_experiment(tmp_path, "trainer.epochs=1"), SimulatedScans())
    two = pretrain(small_experiment(tmp_path, "trainer.epochs=1", "seed=1"), SimulatedScans())
    with pytest.raises(AssertionError):
        assert_equal_weights(final_weights(two.folder), final_weights(one.folder))


def test_a_torn_checkpoint_is_stepped_over_and_said(tmp_path, capsys):
    experiment = small_experiment(tmp_path)
    kill_at(7, tmp_path)
    folder = run_folder(experiment)
    newest, older = checkpoints(folder)[:2]
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert last_good(folder)[0] == older
    resumed = pretrain(experiment, SimulatedScans())
    output = capsys.readouterr()
    assert newest.name in (output.out + output.err).replace("\n", "")
    undisturbed = pretrain(small_experiment(tmp_path / "other"), SimulatedScans())
    assert_equal_weights(final_weights(resumed.folder), final_weights(undisturbed.folder))


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = pretrain(small_experiment(tmp_path), SimulatedScans())
    stamps = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*") if path.name != "run.lock"}
    second = pretrain(small_experiment(tmp_path), SimulatedScans())
    assert not second.trained
    assert second.checkpoint == first.checkpoint
    assert stamps == {path: path.stat().st_mtime_ns for path in first.folder.rglob("*") if path.name != "run.lock"}


def test_the_shipped_experiments_know_their_run_folder():
    experiment = load_experiment("demo")
    assert run_folder(experiment).name.startswith("demo-")
