"""On a real Slurm: a run that is stopped in time is requeued and ends as the run that nobody disturbed."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pytest

from brainage.config import Experiment, load_experiment, run_folder, save_experiment
from brainage.errors import ConfigError
from brainage.pretraining.checkpoint import checkpoints
from brainage.pretraining.folder import FINISHED
from brainage.pretraining.run import pretrain
from brainage.slurm.profile import load_profile
from brainage.slurm.queue import standings
from brainage.slurm.script import INDEX
from brainage.slurm.submission import print_status, submit_array, submit_pretraining
from tests.pretraining.groups import together
from tests.pretraining.test_resume import assert_equal_weights, final_weights, journal
from tests.scans import SimulatedScans, small_experiment
from tests.slurm_cluster import Cluster, free_ports, read, until

ROOT = Path(__file__).parents[2]
KEYS = ("encoder.dropout=0.2", "checkpoint.every_steps=5", "trainer.devices=2")
PROFILE = """
time: "{time}"
tasks_per_node: {tasks}
nodes: {nodes}
gpus_per_node: 0
cpus_per_task: 1
signal_seconds: {signal_seconds}
command: {python} -m tests.slurm.vector_command
logs: {logs}
environment:
  PYTHONPATH: "{root}"
  OMP_NUM_THREADS: "1"
  MASTER_ADDR: "127.0.0.1"  # the nodes' names are the cluster's own
  MASTER_PORT: "{port}"
  BRAINAGE_TEST_WAIT: "{wait}"
"""

pytestmark = pytest.mark.slurm


@pytest.fixture
def at(cluster: Cluster, monkeypatch) -> Cluster:
    """Commands of Slurm in this process and its children find the cluster."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


def profile(folder: Path, wait: str = "", *, tasks=2, nodes=1, time="00:10:00", signal_seconds=60) -> str:
    path = folder / "tests.yaml"
    text = PROFILE.format(
        time=time, tasks=tasks, nodes=nodes, signal_seconds=signal_seconds, python=sys.executable, logs=folder / "logs",
        root=ROOT, wait=wait, port=free_ports(1)[0],
    )  # fmt: skip
    path.write_text(text)
    return str(path)


def write(experiment: Experiment, folder: Path) -> str:
    path = folder / "vectors.yaml"
    save_experiment(experiment, path)
    return str(path)


def tracked(folder: Path) -> tuple[str, ...]:
    return ("tracking.enabled=true", f"tracking.uri=sqlite:///{folder}/mlflow.db")


def mlflow_runs(folder: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(folder / "mlflow.db") as base:
        return base.execute("select run_uuid, status from runs").fetchall()


def mlflow_points(folder: Path) -> list[tuple[str, int]]:
    with sqlite3.connect(folder / "mlflow.db") as base:
        return base.execute("select key, step from metrics where key not like 'system/%'").fetchall()


def undisturbed_rank(rank: int, ranks: int, experiment: Experiment) -> Path:
    return pretrain(experiment, SimulatedScans(experiment)).folder


def assert_ends_as_undisturbed(folder: Path, tmp_path: Path) -> None:
    """Same weights and same journal as two ranks that nobody stopped; one MLflow run with each point once."""
    whole = small_experiment(tmp_path / "whole", *KEYS)
    expected = together(2, undisturbed_rank, whole)[0]
    assert_equal_weights(final_weights(folder), final_weights(expected))
    points, wanted = journal(folder), journal(expected)  # each point once
    assert points.keys() == wanted.keys()
    assert {k: v for k, v in points.items() if not k[1].startswith("speed/")} == {
        k: v for k, v in wanted.items() if not k[1].startswith("speed/")
    }
    assert [status for _, status in mlflow_runs(tmp_path)] == ["FINISHED"]
    sent = mlflow_points(tmp_path)
    assert len(sent) == len(set(sent))
    assert set(sent) == {(name, step) for step, name in points}


@pytest.mark.slow
def test_a_run_on_two_ranks_is_requeued_by_a_signal_and_ends_as_an_undisturbed_one(tmp_path, at, capsys):
    reached = tmp_path / "reached"
    experiment = small_experiment(tmp_path / "runs", *KEYS, *tracked(tmp_path))
    words = profile(tmp_path, f"7 {reached}")
    job = submit_pretraining(write(experiment, tmp_path), [], words).jobs[0]
    log = Path(job.log)
    until(lambda: len(read(reached).split()) == 2, 150, "step 7 on both ranks", lambda: read(log) + at.told())
    with pytest.raises(ConfigError, match=f"job {job.id} .running. works on this run"):
        submit_pretraining(write(experiment, tmp_path), [], words)
    at.command("scancel", "--signal=USR1", job.id)
    at.see_requeued(job.id, log, 120)
    folder = run_folder(experiment)
    assert checkpoints(folder)[0].name == "step_00000007.ckpt"
    assert mlflow_runs(tmp_path)[0][1] == "RUNNING"
    assert at.wait(job.id, log, 400) == "COMPLETED", read(log)

    (standing,) = standings([job], [str(folder)])
    assert (standing.state, standing.restarts, standing.step) == ("COMPLETED", 1, 12)
    print_status(tmp_path / "logs")
    assert str(log) in capsys.readouterr().out
    assert "stopped in time and is requeued" in read(log)
    assert "continues from step_00000007.ckpt" in read(log)  # appended to the log of the first go
    assert_ends_as_undisturbed(folder, tmp_path)


@pytest.mark.slow
def test_the_time_limit_requeues_a_run_of_two_machines(tmp_path, at):
    reached = tmp_path / "reached"
    experiment = small_experiment(tmp_path / "runs", *KEYS, *tracked(tmp_path))
    limited = profile(tmp_path, f"6 {reached}", tasks=1, nodes=2, time="00:03:00", signal_seconds=60)
    words = ["trainer.devices=1", "trainer.nodes=2"]
    job = submit_pretraining(write(experiment, tmp_path), words, limited).jobs[0]
    log = Path(job.log)
    at.see_requeued(job.id, log, 300, "TimeLimit=10")  # Slurm warns up to a minute early: starting takes its time
    assert len(read(reached).split()) == 2, read(log)  # it was in training that the warning came
    assert at.wait(job.id, log, 400) == "COMPLETED", read(log)
    assert at.job(job.id)["NumNodes"] == "2"
    assert_ends_as_undisturbed(run_folder(experiment), tmp_path)


@pytest.mark.slow
def test_a_job_array_keeps_its_metrics_until_one_job_delivers_them(tmp_path, at):
    one = [key for key in KEYS if "devices" not in key]
    experiment = small_experiment(tmp_path / "runs", *one, *tracked(tmp_path))
    file = write(experiment, tmp_path)
    pair = [load_experiment(file, [f"seed={seed}"]) for seed in range(2)]
    alone = load_profile(profile(tmp_path, tasks=1))
    jobs = submit_array("pair", ["pretrain", file, f"seed={INDEX}"], pair, alone).jobs
    array, deliver = jobs
    until(
        lambda: all((run_folder(member) / FINISHED).is_file() for member in pair), 240, "both members",
        lambda: read(Path(array.log_of(0))) + at.told(),
    )  # fmt: skip
    assert (
        not any((run_folder(member) / "mlflow.json").exists() for member in pair)
        or at.job(deliver.id)["JobState"] != "PENDING"
    )
    assert at.wait(deliver.id, Path(deliver.log), 180) == "COMPLETED", read(Path(deliver.log))
    assert {job.state for job in standings([array])} == {"COMPLETED"}
    assert [status for _, status in mlflow_runs(tmp_path)] == ["FINISHED", "FINISHED"]
    assert read(Path(deliver.log)).count("metric points and") == 2
