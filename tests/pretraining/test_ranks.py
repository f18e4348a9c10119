"""One network in several processes is the network of one process: same losses, same weights, one run."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from brainage.cli import app
from brainage.config import load_experiment, run_folder, save_experiment
from brainage.errors import ConfigError, TrainingStopped
from brainage.pretraining import launch
from brainage.pretraining.checkpoint import checkpoints, load_module
from brainage.pretraining.folder import read_finished
from brainage.pretraining.run import pretrain
from tests.pretraining.groups import together
from tests.pretraining.test_resume import assert_equal_weights, final_weights, journal
from tests.scans import SimulatedScans, small_experiment

# 5 scans a batch are 3 + 2 for two ranks; val batches of 3 leave the fourth of four, and those of 2 the third, nobody.
SHARED = ("data.val_fraction=0.35", "optim.name=sgd", "health.every_steps=4", "checkpoint.every_steps=100")
ROWS = {
    "sync": ("loss.name=exp", "optim.clip_norm=0.5", "loss.site_penalty=1"),
    "group": ("loss.name=rnc", "loss.temperature=2", "encoder.norm=group", "encoder.head=mlp", "augment.cutout_p=0.5"),
    "none": ("loss.name=l1", "encoder.norm=none", "loss.regulariser=conr", "optim.lr=1e-4"),
}
STOPPED = ("health.every_steps=1", "health.min_effective_rank=100", "health.patience=3")


def of(runs: Path, name: str, ranks: int) -> Any:
    return small_experiment(runs / f"{name}{ranks}", *SHARED, *ROWS[name], f"trainer.devices={ranks}")


def train_rows(rank: int, ranks: int, runs: Path, names: list[str]) -> list[Path]:
    experiments = [of(runs, name, ranks) for name in names]
    return [pretrain(experiment, SimulatedScans(experiment)).folder for experiment in experiments]


def assert_same_run(found: Path, expected: Path) -> None:
    points, wanted = journal(found), journal(expected)
    assert points.keys() == wanted.keys()
    for key, value in wanted.items():
        if not key[1].startswith("speed/"):
            assert points[key] == pytest.approx(value, rel=2e-4, abs=2e-4), key
    weights = final_weights(found)
    for name, value in final_weights(expected).items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Path]:
    runs = tmp_path_factory.mktemp("alone")
    return {name: pretrain(of(runs, name, 1), SimulatedScans(of(runs, name, 1))).folder for name in ROWS}


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_learn_what_one_learns(tmp_path, alone, ranks):
    folders = together(ranks, train_rows, tmp_path, list(ROWS))
    for place, name in enumerate(ROWS):
        assert {rank[place] for rank in folders} == {folders[0][place]}
        folder = folders[0][place]
        assert folder.name == alone[name].name  # devices are no part of what is learnt
        assert read_finished(folder) is not None
        assert_same_run(folder, alone[name])
        load_module(checkpoints(folder)[0])  # a checkpoint of several ranks is one process's


def train_stopped(rank: int, ranks: int, runs: Path) -> tuple[str, int]:
    experiment = small_experiment(runs, *STOPPED, f"trainer.devices={ranks}")
    with pytest.raises(TrainingStopped) as stopped:
        pretrain(experiment, SimulatedScans(experiment))
    return str(stopped.value), len(getattr(stopped.value, "__notes__", []))


def test_a_run_that_the_first_rank_stops_stops_on_all_and_is_said_by_one(tmp_path):
    (first, first_notes), (second, second_notes) = together(2, train_stopped, tmp_path)
    assert "health step 3" in first
    assert first == second
    assert (first_notes, second_notes) == (0, 1)


def train_with_dropout(rank: int, ranks: int, runs: Path) -> tuple[Path, list[float]]:
    experiment = small_experiment(runs, "encoder.dropout=0.5", "data.batch_size=4", f"trainer.devices={ranks}")
    folder = pretrain(experiment, SimulatedScans(experiment)).folder
    return folder, torch.rand(3).tolist()  # the last step's numbers, of which as many were drawn on each rank


def test_ranks_drop_different_units(tmp_path):
    one, two = together(2, train_with_dropout, tmp_path)
    assert one[1] != two[1]


@pytest.fixture
def vectors(monkeypatch) -> None:
    """`pretrain` starts processes that know the vector cohort."""
    monkeypatch.setattr(launch, "ENTRY", ("-m", "tests.pretraining.vector_rank"))


def mlflow_runs(file: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(file) as base:
        return base.execute("select run_uuid, status from runs").fetchall()


def test_a_killed_rank_ends_the_others_and_the_resumed_run_is_the_undisturbed_one(tmp_path, monkeypatch, vectors):
    keys = ("trainer.devices=2", "encoder.dropout=0.2")
    tracked = (*keys, "tracking.enabled=true", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    experiment = small_experiment(tmp_path / "killed", *tracked)
    monkeypatch.setenv("BRAINAGE_TEST_KILL", "7 1")
    with pytest.raises(launch.RankLostError, match="rank 1 was killed"):
        pretrain(experiment, SimulatedScans(experiment))
    monkeypatch.setenv("BRAINAGE_TEST_KILL", "")
    resumed = pretrain(experiment, SimulatedScans(experiment))
    assert resumed.trained
    assert not pretrain(experiment, SimulatedScans(experiment)).trained
    undisturbed = together(2, train, small_experiment(tmp_path / "whole", *keys))[0]

    assert_equal_weights(final_weights(resumed.folder), final_weights(undisturbed))
    found, expected = journal(resumed.folder), journal(undisturbed)  # each point once
    assert found.keys() == expected.keys()
    assert {k: v for k, v in found.items() if not k[1].startswith("speed/")} == {
        k: v for k, v in expected.items() if not k[1].startswith("speed/")
    }
    assert [status for _, status in mlflow_runs(tmp_path / "mlflow.db")] == ["FINISHED"]
    assert not list((tmp_path / "killed").glob(".launch_*"))


def train(rank: int, ranks: int, experiment: Any) -> Path:
    return pretrain(experiment, SimulatedScans(experiment)).folder


@pytest.mark.slow
def test_all_ranks_killed_and_the_run_resumed_on_another_number_of_them(tmp_path, monkeypatch, vectors):
    keys = ("optim.name=sgd", "checkpoint.every_steps=2")
    experiment = small_experiment(tmp_path / "killed", *keys, "trainer.devices=2")
    monkeypatch.setenv("BRAINAGE_TEST_KILL", "7 01")
    with pytest.raises(launch.RankLostError, match="was killed"):
        pretrain(experiment, SimulatedScans(experiment))
    alone = small_experiment(tmp_path / "killed", *keys)
    resumed = pretrain(alone, SimulatedScans(alone))
    whole = small_experiment(tmp_path / "whole", *keys)
    assert_same_run(resumed.folder, pretrain(whole, SimulatedScans(whole)).folder)


@pytest.mark.slow
def test_what_a_rank_raises_is_raised_once_by_the_command_that_started_it(tmp_path, vectors):
    experiment = small_experiment(tmp_path, *STOPPED, "trainer.devices=2")
    with pytest.raises(TrainingStopped, match="health step 3"):
        pretrain(experiment, SimulatedScans(experiment))


def test_a_batch_smaller_than_the_devices_is_refused_before_anything_starts(tmp_path):
    experiment = small_experiment(tmp_path, "trainer.devices=6")
    with pytest.raises(ConfigError, match="a batch of 5 scans for 6 devices"):
        pretrain(experiment, SimulatedScans(experiment))
    single = small_experiment(tmp_path, "trainer.devices=5", "trainer.sync_batchnorm=false", "augment.views=1")
    with pytest.raises(ConfigError, match="BatchNorm one sample"):
        pretrain(single, SimulatedScans(single))


def test_several_machines_are_not_started_from_one(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    experiment = small_experiment(tmp_path, "trainer.nodes=2")
    with pytest.raises(ConfigError, match=r"torchrun --nnodes=2"):
        pretrain(experiment, SimulatedScans(experiment))


def test_devices_are_no_part_of_the_training_where_batchnorm_is_synchronised(tmp_path):
    def folder(*overrides: str) -> str:
        return run_folder(small_experiment(tmp_path, *overrides)).name

    assert folder() == folder("trainer.devices=2") == folder("trainer.nodes=4")
    own = folder("trainer.sync_batchnorm=false")
    assert own != folder()
    assert own != folder("trainer.sync_batchnorm=false", "trainer.devices=2")


def test_the_hidden_command_opens_the_cohort_of_the_file_it_is_given(tmp_path, monkeypatch, simulated):
    overrides = [f"data.root={simulated}", "data.modality=vbm_roi", "encoder.name=mlp", f"runs={tmp_path / 'runs'}"]
    save_experiment(load_experiment("openbhb_exp", overrides), tmp_path / "config.yaml")
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        launch, "as_rank", lambda experiment, open_data, **options: given.update(data=open_data(), **options)
    )
    words = ["--label", "l1-seed0", "--errors", str(tmp_path), "--parent", str(tmp_path)]
    result = CliRunner().invoke(app, [launch.ENTRY[2], str(tmp_path / "config.yaml"), *words])
    assert result.exit_code == 0, result.output
    assert given["data"].config.modality == "vbm_roi"
    assert (given["label"], given["errors"], given["parent"]) == ("l1-seed0", tmp_path, tmp_path)


def test_who_will_start_the_others_prepares_alone(tmp_path):
    from brainage.stages import prepare_together

    experiment = small_experiment(tmp_path, "trainer.devices=2")
    data = SimulatedScans(experiment)
    prepare_together(experiment, data)
    assert data.store.path.is_dir()
