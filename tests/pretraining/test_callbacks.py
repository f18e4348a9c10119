"""What watches a run: the journal, the health line, the checkpoints that stay, the progress line."""

from __future__ import annotations

import json
import math

import pytest
import torch

from brainage.config import run_folder
from brainage.errors import TrainingStopped
from brainage.pretraining import run as running
from brainage.pretraining.callbacks import Keeper, ProgressLine
from brainage.pretraining.checkpoint import PAYLOAD, Payload, checkpoints, load_checkpoint
from brainage.pretraining.run import pretrain
from brainage.tracking import read_journal
from tests.scans import SimulatedScans, small_experiment


def points(folder) -> dict[str, dict[int, float]]:
    """Name -> step -> value."""
    frame = read_journal(folder / "metrics.jsonl")
    return {name: dict(zip(rows["step"], rows["value"], strict=True)) for name, rows in frame.groupby("name")}


def test_every_step_is_in_the_journal_and_looks_and_validations_at_their_own(finished):
    found = points(finished[2].folder)
    assert set(found["train/loss"]) == set(found["train/lr"]) == set(range(1, 13))
    looks = {2, 4, 6, 8, 10, 12}  # health.every_steps
    for name in ("health/loss_over_collapse", "health/effective_rank", "health/alignment", "health/uniformity"):
        assert set(found[name]) == looks
    assert set(found["val/loss"]) == {4, 8, 12}  # ends of the three epochs
    assert set(found["speed/images_per_s"]) == looks
    assert all(0 <= share <= 1 for share in found["speed/loader_wait_share"].values())
    assert all(speed > 0 for speed in found["speed/images_per_s"].values())
    for step in looks:  # the same loss, twice written
        ratio = found["train/loss"][step] / found["health/collapse_loss"][step]
        assert found["health/loss_over_collapse"][step] == pytest.approx(ratio, rel=1e-6)


def test_journal_lines_are_plain_json_with_a_time(finished):
    lines = [json.loads(line) for line in (finished[2].folder / "metrics.jsonl").read_text().splitlines()]
    assert all(set(line) == {"step", "time_ms", "metrics"} for line in lines)
    assert [line["time_ms"] for line in lines] == sorted(line["time_ms"] for line in lines)


def test_the_newest_checkpoints_stay(finished, tmp_path):
    kept = [load_checkpoint(path)[PAYLOAD]["step"] for path in checkpoints(finished[2].folder)]
    assert kept == [12, 10]  # keep=2, every_steps=2
    experiment = small_experiment(tmp_path, "checkpoint.every_steps=5", "checkpoint.keep=3")
    run = pretrain(experiment, SimulatedScans(experiment))
    assert [path.name for path in checkpoints(run.folder)] == [f"step_{step:08d}.ckpt" for step in (12, 10, 5)]


def test_a_checkpoint_names_the_mlflow_run_once_it_is_known(finished):
    class Server:
        run_id: str | None = None

    class Trainer:
        global_step = 3

    payload = Payload.from_dict(load_checkpoint(finished[2].checkpoint)[PAYLOAD], finished[2].checkpoint)
    keeper = Keeper(finished[2].folder, payload, Server, None, every_steps=1, keep=1)
    for run_id, expected in ((None, ""), ("0a1b", "0a1b")):
        Server.run_id, checkpoint = run_id, {}
        keeper.on_save_checkpoint(Trainer, None, checkpoint)
        assert (checkpoint[PAYLOAD]["mlflow_run_id"], checkpoint[PAYLOAD]["step"]) == (expected, 3)


def test_how_often_is_looked_and_saved_changes_no_weight(finished, tmp_path):
    overrides = ["checkpoint.every_steps=3", "health.every_steps=7", "data.resident=host", "trainer.progress=true"]
    experiment = small_experiment(tmp_path, *overrides)
    data = SimulatedScans(experiment)
    run = pretrain(experiment, data)
    assert run.folder.name == finished[2].folder.name  # nor is it another training
    found, expected = (load_checkpoint(path)["state_dict"] for path in (run.checkpoint, finished[2].checkpoint))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("loss", "constant"),
    [("l1", lambda age: (age - age.median()).abs().mean()), ("l2", lambda age: age.var(correction=0))],
)
def test_a_supervised_run_is_compared_with_the_best_constant_of_its_batch(tmp_path, monkeypatch, loss, constant):
    ages = {}

    class Note(running.L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            ages[trainer.global_step] = batch["age_years"].clone()

    build = running.build_trainer
    monkeypatch.setattr(running, "build_trainer", lambda e, callbacks, **o: build(e, [*callbacks, Note()], **o))
    experiment = small_experiment(tmp_path, f"loss.name={loss}", "trainer.epochs=1")
    run = pretrain(experiment, SimulatedScans(experiment))
    found = points(run.folder)
    for step, value in found["health/collapse_loss"].items():
        assert value == pytest.approx(float(constant(ages[step])), rel=1e-5)
    assert math.isfinite(found["val/mae_years"][4])
    # Validation views carry noise, so that the loss is over both views and the error over their mean.
    if loss == "l1":
        assert found["val/mae_years"][4] <= found["val/loss"][4] + 1e-5


@pytest.mark.parametrize("regulariser", ["conr", "order"])
def test_a_regularised_run_is_compared_without_its_regulariser(tmp_path, monkeypatch, regulariser):
    """At the best constant prediction it has collapsed, whatever the regulariser adds to the loss."""
    looked = {}

    class Note(running.L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            predicted = module.outputs["predicted_years"].view(-1, 2)
            error = (predicted - module.outputs["age_years"][:, None]).abs().mean()
            looked[trainer.global_step] = float(error), float(module.outputs["loss"])

    build = running.build_trainer
    monkeypatch.setattr(running, "build_trainer", lambda e, callbacks, **o: build(e, [*callbacks, Note()], **o))
    words = ["loss.name=l1", f"loss.regulariser={regulariser}", "loss.regulariser_weight=10", "trainer.epochs=1"]
    experiment = small_experiment(tmp_path, *words)
    found = points(pretrain(experiment, SimulatedScans(experiment)).folder)
    for step, ratio in found["health/loss_over_collapse"].items():
        plain, total = looked[step]
        assert ratio == pytest.approx(plain / found["health/collapse_loss"][step], rel=1e-5)
        assert abs(total - plain) > 0.01 * plain
        assert found["train/loss"][step] == pytest.approx(total, rel=1e-6)


def test_progress_is_one_plain_line_an_epoch_at_most_where_there_is_no_terminal(tmp_path, capsys):
    experiment = small_experiment(tmp_path, "trainer.progress=true", "trainer.epochs=2")
    pretrain(experiment, SimulatedScans(experiment), label="try")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("try: step")]
    assert len(lines) == 1
    assert lines[0].startswith("try: step 8/8, loss ")
    assert "images/s" in lines[0]
    assert "wait" in lines[0]


def test_the_progress_line_says_only_what_is_known():
    class Nothing:
        latest: dict[str, float] = {}  # noqa: RUF012

    line = ProgressLine(Nothing(), None, total_steps=5, label="x")
    assert line.line() == ""
    Nothing.latest = {"train/loss": 1.23456, "speed/loader_wait_share": 0.041}
    assert line.line() == "loss 1.235, wait 4%"


def test_a_checkpoint_of_a_loss_that_is_not_finite_is_not_written(tmp_path):
    experiment = small_experiment(
        tmp_path, "optim.lr=1e30", "optim.name=sgd", "health.every_steps=1000", "checkpoint.every_steps=1"
    )
    with pytest.raises(TrainingStopped, match="nan"):
        pretrain(experiment, SimulatedScans())
    assert all(
        bool(torch.isfinite(weights).all())
        for path in checkpoints(run_folder(experiment))
        for weights in load_checkpoint(path)["state_dict"].values()
    )
