"""A run folder from beginning to end: what it holds, what refuses to start, what stops."""

from __future__ import annotations

import fcntl
import json
import os

import lightning as L
import numpy as np
import pytest
import torch

from brainage.config import apply_overrides, read_experiment, run_folder
from brainage.data.splits import read_split, split_hash
from brainage.data.table import read_table, scan_keys
from brainage.errors import CheckpointError, ConfigError, ContractError, TrainingStopped
from brainage.imaging.contract import InputContract
from brainage.pretraining import run as running
from brainage.pretraining.checkpoint import checkpoints, load_checkpoint
from brainage.pretraining.run import pretrain
from tests.scans import FEATURES, SimulatedScans, VectorCohort, small_experiment

SHORT = "trainer.epochs=1"


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


class Constant(VectorCohort):
    """Everybody has the same features."""

    def read(self, path):
        return np.ones(FEATURES, dtype=np.float32)


class Enormous(VectorCohort):
    """Finite numbers whose products are not."""

    def read(self, path):
        return super().read(path) * np.float32(1e36)


def scans_of(reader: type[VectorCohort], experiment) -> SimulatedScans:
    return SimulatedScans(experiment, reader)


def interrupted(monkeypatch, experiment, data, step: int) -> None:
    """Train up to a step, then fall over as an ordinary defect would."""

    class Fall(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == step:
                raise RuntimeError("fell over")

    build = running.build_trainer
    with monkeypatch.context() as patch:
        patch.setattr(running, "build_trainer", lambda e, callbacks, **o: build(e, [*callbacks, Fall()], **o))
        with pytest.raises(RuntimeError, match="fell over"):
            pretrain(experiment, data)


def test_a_finished_run_describes_itself(finished):
    experiment, data, run = finished
    assert names(run.folder) == {
        "config.yaml", "split.tsv", "table.parquet", "dropped.tsv", "contract.json", "environment.json", "health.json",
        "metrics.jsonl", "checkpoints", "finished.json", "run.lock",
    }  # fmt: skip
    assert read_experiment(run.folder / "config.yaml") == experiment
    assert split_hash(read_split(run.folder / "split.tsv")) == data.split_hash
    assert scan_keys(read_table(run.folder / "table.parquet")).tolist() == scan_keys(data.table).tolist()
    assert InputContract.from_dict(json.loads((run.folder / "contract.json").read_text())) == data.contract
    assert json.loads((run.folder / "health.json").read_text())["status"] == "ok"
    assert json.loads((run.folder / "environment.json").read_text())["split_hash"] == data.split_hash
    assert run.checkpoint == checkpoints(run.folder)[0]


def test_a_collapsed_run_stops_and_says_so(tmp_path):
    overrides = ["augment.noise_p=0", "health.every_steps=1", "health.patience=3"]
    experiment = small_experiment(tmp_path, *overrides)
    with pytest.raises(TrainingStopped, match=r"collapsed for 3 looks in a row.* Try encoder\.head=mlp_bn"):
        pretrain(experiment, scans_of(Constant, experiment))
    folder = run_folder(experiment)
    health = json.loads((folder / "health.json").read_text())
    assert health["status"] == "stopped"
    assert "collapsed" in health["message"]
    assert "collapsed (3/3)" in health["message"]
    assert not (folder / "finished.json").exists()
    losses = [json.loads(line)["metrics"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum("train/loss" in metrics for metrics in losses) == 3  # the steps until then are kept


@pytest.mark.parametrize(
    ("reader", "overrides"),
    [(VectorCohort, ["optim.name=sgd", "optim.lr=1e30"]), (Enormous, ["data.intensity=none"])],
    ids=["absurd rate", "features that overflow"],
)
def test_a_run_that_turns_nan_stops_at_once(tmp_path, reader, overrides):
    experiment = small_experiment(tmp_path, "loss.name=l2", "health.every_steps=1", *overrides)
    with pytest.raises(TrainingStopped, match=r"not finite: loss (nan|inf).* smaller optim\.lr"):
        pretrain(experiment, scans_of(reader, experiment))
    health = json.loads((run_folder(experiment) / "health.json").read_text())
    assert health["status"] == "stopped"
    assert "nan" in health["message"]


def test_a_stopped_run_stops_again_when_asked_again(tmp_path):
    experiment = small_experiment(tmp_path, "augment.noise_p=0", "health.every_steps=1", "health.patience=3")
    for _ in range(2):
        with pytest.raises(TrainingStopped, match="collapsed"):
            pretrain(experiment, scans_of(Constant, experiment))


def test_health_can_be_told_to_warn_only(tmp_path):
    overrides = ["augment.noise_p=0", "health.every_steps=1", "health.patience=3", "health.stop=false", SHORT]
    experiment = small_experiment(tmp_path, *overrides)
    assert pretrain(experiment, scans_of(Constant, experiment)).trained


def test_a_second_process_on_the_same_run_is_refused(tmp_path):
    experiment = small_experiment(tmp_path)
    folder = run_folder(experiment)
    folder.mkdir(parents=True)
    with (folder / "run.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for resume in ("auto", "never"):  # nor may it move the folder away from the first
            with pytest.raises(ConfigError, match="another process is training this run"):
                pretrain(apply_overrides(experiment, [f"checkpoint.resume={resume}"]), SimulatedScans(experiment))
        assert names(folder) == {"run.lock"}


def test_a_run_is_not_continued_on_another_split_and_keeps_its_own(tmp_path, monkeypatch):
    experiment = small_experiment(tmp_path)
    interrupted(monkeypatch, experiment, SimulatedScans(experiment), step=5)
    folder = run_folder(experiment)
    before = (folder / "split.tsv").read_bytes()
    other = SimulatedScans(small_experiment(tmp_path, "data.split_seed=1"))
    with pytest.raises(CheckpointError, match="people or splits changed"):
        pretrain(experiment, other)
    assert (folder / "split.tsv").read_bytes() == before


def test_a_finished_run_on_another_split_is_refused(finished):
    experiment, _, _ = finished
    other = SimulatedScans(small_experiment(experiment.runs, "data.split_seed=1"))
    with pytest.raises(CheckpointError, match="trained on split"):
        pretrain(experiment, other)


def test_a_run_is_not_continued_with_other_samples(tmp_path, monkeypatch):
    experiment = small_experiment(tmp_path)
    data = SimulatedScans(experiment)
    interrupted(monkeypatch, experiment, data, step=5)
    data.contract = InputContract(modality="volumes of regions", kind="vector", shape=(FEATURES,))
    with pytest.raises(ContractError, match="modality: expected 'features', found 'volumes of regions'"):
        pretrain(experiment, data)


def test_a_run_whose_end_was_not_noted_is_finished_without_training(tmp_path):
    experiment = small_experiment(tmp_path, SHORT)
    first = pretrain(experiment, SimulatedScans(experiment))
    weights = load_checkpoint(first.checkpoint)["state_dict"]
    journal = (first.folder / "metrics.jsonl").read_bytes()
    (first.folder / "finished.json").unlink()
    again = pretrain(experiment, SimulatedScans(experiment))
    assert again.checkpoint == first.checkpoint
    found = load_checkpoint(again.checkpoint)["state_dict"]
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert (first.folder / "metrics.jsonl").read_bytes() == journal


def test_resume_never_trains_anew_and_keeps_the_earlier_run_aside(tmp_path, capsys):
    experiment = small_experiment(tmp_path, SHORT)
    first = pretrain(experiment, SimulatedScans(experiment))
    kept = first.checkpoint.read_bytes()
    again = pretrain(apply_overrides(experiment, ["checkpoint.resume=never"]), SimulatedScans(experiment))
    assert again.trained
    aside = first.folder.with_name(f"{first.folder.name}.old1")
    assert (aside / "checkpoints" / first.checkpoint.name).read_bytes() == kept
    assert f"kept as {aside.name}" in capsys.readouterr().err


def test_a_checkpoint_of_another_experiment_is_not_continued(finished, tmp_path):
    theirs = finished[2].checkpoint
    experiment = small_experiment(tmp_path, "encoder.head=mlp", f"checkpoint.resume={theirs}")
    with pytest.raises(CheckpointError, match=r"differs in encoder\.head \('mlp_bn', now 'mlp'\)"):
        pretrain(experiment, SimulatedScans(experiment))
    absent = small_experiment(tmp_path, f"checkpoint.resume={tmp_path / 'none.ckpt'}")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        pretrain(absent, SimulatedScans(absent))


def test_training_goes_on_from_a_named_checkpoint_of_the_same_experiment(finished, tmp_path):
    _, _, run = finished
    older = checkpoints(run.folder)[1]
    experiment = small_experiment(tmp_path, f"checkpoint.resume={older}")
    continued = pretrain(experiment, SimulatedScans(experiment))
    found, expected = (load_checkpoint(path)["state_dict"] for path in (continued.checkpoint, run.checkpoint))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.precision=fp16", "a CPU would train in bf16 instead"),
        ("encoder.name=alexnet", "expected volumes, found vectors"),
    ],
)
def test_what_the_machine_cannot_do_is_refused_before_the_first_step(tmp_path, override, message):
    experiment = small_experiment(tmp_path, override)
    with pytest.raises(ConfigError, match=message):
        pretrain(experiment, SimulatedScans(experiment))
    assert not checkpoints(run_folder(experiment))


def test_bf16_trains_on_a_cpu_and_keeps_losses_and_weights_in_float32(tmp_path, monkeypatch):
    experiment = small_experiment(tmp_path, "trainer.precision=bf16", SHORT)
    types = {"loss": set(), "trunk": set()}

    class Look(L.Callback):
        def on_fit_start(self, trainer, module):
            module.encoder.register_forward_hook(lambda _m, _i, out: types["trunk"].add(out.dtype))

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            types["loss"].add(outputs["loss"].dtype)
            types["loss"].add(module.outputs["z"].dtype)

    build = running.build_trainer
    monkeypatch.setattr(running, "build_trainer", lambda e, callbacks, **o: build(e, [*callbacks, Look()], **o))
    run = pretrain(experiment, SimulatedScans(experiment))
    assert types == {"loss": {torch.float32}, "trunk": {torch.bfloat16}}
    state = load_checkpoint(run.checkpoint)["state_dict"]
    assert {value.dtype for value in state.values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize("val_fraction", [0.0, 0.3])
def test_fast_dev_run_keeps_nothing(tmp_path, val_fraction):
    overrides = ["trainer.fast_dev_run=true", f"data.val_fraction={val_fraction}"]
    experiment = small_experiment(tmp_path / "runs", *overrides)
    pretrain(experiment, SimulatedScans(experiment))
    assert not (tmp_path / "runs").exists()


def test_overfitting_a_batch_brings_its_loss_down(tmp_path):
    overrides = ["loss.name=l1", "trainer.epochs=80", "optim.lr=0.02", "augment.noise_p=0", "health.stop=false"]
    experiment = small_experiment(tmp_path, "trainer.overfit_batches=1", "data.val_fraction=0", *overrides)
    data = SimulatedScans(experiment)
    data.overfit_batches = 1
    run = pretrain(experiment, data)
    losses = [json.loads(line)["metrics"].get("train/loss") for line in (run.folder / "metrics.jsonl").open()]
    losses = [loss for loss in losses if loss is not None]
    assert len(losses) == 80
    assert np.mean(losses[-5:]) < 0.25 * losses[0]


def test_the_lock_of_a_dead_process_holds_nobody_up(tmp_path):
    experiment = small_experiment(tmp_path, SHORT)
    folder = run_folder(experiment)
    folder.mkdir(parents=True)
    (folder / "run.lock").write_text(str(os.getpid()))
    assert pretrain(experiment, SimulatedScans(experiment)).trained
