"""A run that is told to stop saves where it is, on all ranks, and ends as the run that nobody disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest

from brainage.config import run_folder, save_experiment
from brainage.pretraining import run
from brainage.pretraining.checkpoint import checkpoints
from brainage.pretraining.folder import read_finished
from brainage.pretraining.run import pretrain
from brainage.runtime.signals import Stopped
from brainage.tracking.lines import read_lines
from tests.pretraining.groups import together
from tests.pretraining.test_resume import assert_equal_weights, final_weights, journal
from tests.scans import SimulatedScans, small_experiment
from tests.slurm_cluster import read, until

# Of 12 steps in 3 epochs; nothing is saved before the end but by a signal.
KEYS = ("checkpoint.every_steps=100", "encoder.dropout=0.2", "optim.schedule=cosine", "health.every_steps=4")


class Send(L.Callback):
    """Sends this process a signal behind a step, or while the validation behind it is under way."""

    def __init__(self, number: int, step: int, *, in_validation: bool = False) -> None:
        self.number, self.step, self.in_validation = number, step, in_validation

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and not self.in_validation:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and self.in_validation:
            os.kill(os.getpid(), self.number)


def train(experiment, *watchers: L.Callback) -> Path:
    build = run.build_trainer
    run.build_trainer = lambda experiment, callbacks, **more: build(experiment, [*watchers, *callbacks], **more)
    try:
        return pretrain(experiment, SimulatedScans(experiment)).folder
    finally:
        run.build_trainer = build


def steps_saved(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step_")) for path in checkpoints(folder))


def assert_same_run(found: Path, expected: Path) -> None:
    assert read_finished(found) is not None
    assert_equal_weights(final_weights(found), final_weights(expected))
    points, wanted = journal(found), journal(expected)  # each point once
    assert points.keys() == wanted.keys()
    assert {k: v for k, v in points.items() if not k[1].startswith("speed/")} == {
        k: v for k, v in wanted.items() if not k[1].startswith("speed/")
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    experiment = small_experiment(tmp_path_factory.mktemp("undisturbed"), *KEYS)
    return train(experiment)


@pytest.mark.parametrize(
    ("number", "step", "in_validation"),
    [(signal.SIGTERM, 7, False), (signal.SIGUSR1, 4, False), (signal.SIGUSR1, 8, True)],
    ids=["in mid-epoch", "at an epoch's end", "in validation"],
)
def test_a_run_that_was_stopped_ends_as_an_undisturbed_one(tmp_path, undisturbed, number, step, in_validation):
    before = signal.getsignal(number)
    experiment = small_experiment(tmp_path, *KEYS)
    with pytest.raises(Stopped) as stopped:
        train(experiment, Send(number, step, in_validation=in_validation))
    assert stopped.value.code == 128 + number
    assert stopped.value.continues == (number == signal.SIGUSR1)
    assert signal.getsignal(number) == before
    folder = run_folder(experiment)
    assert steps_saved(folder) == [step]
    assert read_finished(folder) is None
    assert max(step for step, name in journal(folder) if name == "train/loss") == step

    assert_same_run(train(experiment), undisturbed)


def test_a_signal_before_the_first_step_leaves_without_a_checkpoint(tmp_path, undisturbed, capsys):
    class SendAtStart(L.Callback):
        def on_fit_start(self, trainer, module):
            os.kill(os.getpid(), signal.SIGTERM)

    experiment = small_experiment(tmp_path, *KEYS)
    with pytest.raises(Stopped):
        train(experiment, SendAtStart())
    assert steps_saved(run_folder(experiment)) == []
    assert "stopped by SIGTERM after step 0: nothing was trained yet" in capsys.readouterr().out
    assert_same_run(train(experiment), undisturbed)


def test_a_signal_in_the_last_step_finds_the_run_finished_and_still_stops_the_command(tmp_path, undisturbed):
    experiment = small_experiment(tmp_path, *KEYS)
    with pytest.raises(Stopped):
        train(experiment, Send(signal.SIGUSR1, 12))
    assert_same_run(run_folder(experiment), undisturbed)


def send_to_one(rank: int, ranks: int, experiment, victim: int) -> int:
    with pytest.raises(Stopped) as stopped:
        train(experiment, *([Send(signal.SIGUSR1, 7)] if rank == victim else []))
    assert stopped.value.together
    return stopped.value.code


def undisturbed_rank(rank: int, ranks: int, experiment) -> Path:
    return train(experiment)


def test_ranks_stop_together_when_one_of_them_is_told_to(tmp_path):
    stopped, whole = (small_experiment(tmp_path / name, *KEYS, "trainer.devices=2") for name in ("stopped", "whole"))
    assert together(2, send_to_one, stopped, 1) == [138, 138]
    assert steps_saved(run_folder(stopped)) == [7]
    together(2, undisturbed_rank, stopped)
    assert_same_run(run_folder(stopped), together(2, undisturbed_rank, whole)[0])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, None), (signal.SIGTERM, "KILLED")])
def test_mlflow_hears_of_the_end_only_where_nobody_continues(tmp_path, number, status):
    tracked = ("tracking.enabled=true", "tracking.uri=http://127.0.0.1:9/", "trainer.epochs=1")  # nobody answers
    experiment = small_experiment(tmp_path, *KEYS, *tracked)
    with pytest.raises(Stopped):
        train(experiment, Send(number, 2))
    outbox = [line for line, _ in read_lines(run_folder(experiment) / "outbox.jsonl")]
    assert next((line["status"] for line in outbox if line["kind"] == "status"), None) == status


@pytest.mark.parametrize(
    ("number", "devices"), [(signal.SIGTERM, 1), pytest.param(signal.SIGUSR1, 2, marks=pytest.mark.slow)]
)
def test_the_command_leaves_with_the_code_of_the_signal_and_continues(tmp_path, undisturbed, number, devices):
    reached = tmp_path / "reached"
    experiment = small_experiment(tmp_path, *KEYS, f"trainer.devices={devices}")
    save_experiment(experiment, tmp_path / "vectors.yaml")
    command = [sys.executable, "-m", "tests.slurm.vector_command", "pretrain", str(tmp_path / "vectors.yaml")]
    environment = {**os.environ, "BRAINAGE_TEST_WAIT": f"7 {reached}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        until(lambda: len(read(reached).split()) == devices, 120, "step 7", str)
        process.send_signal(number)
        said = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 128 + number, said
    assert f"stopped by {signal.Signals(number).name} after step 7" in said
    assert steps_saved(run_folder(experiment)) == [7]
    if devices == 1:
        assert_same_run(train(experiment), undisturbed)
