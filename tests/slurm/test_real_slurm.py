"""On a real Slurm: a run that is stopped in time is requeued and ends as the run that nobody disturbed."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from brainage.config import Experiment, run_folder, save_experiment
from brainage.pretraining.checkpoint import checkpoints
from brainage.pretraining.folder import FINISHED
from brainage.slurm.submission import submit_pretraining
from tests.scans import small_experiment
from tests.slurm_cluster import Cluster, read, until

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
environment: {{PYTHONPATH: "{root}", OMP_NUM_THREADS: "1", MASTER_ADDR: "127.0.0.1", BRAINAGE_TEST_WAIT: "{wait}"}}
"""

pytestmark = pytest.mark.slurm


@pytest.fixture
def at(cluster: Cluster, monkeypatch) -> Cluster:
    """Commands of Slurm in this process and its children find the cluster."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


def profile(folder: Path, wait: str = "", *, tasks=2, nodes=1, time="00:10:00", signal_seconds=60) -> str:
    import sys

    path = folder / "tests.yaml"
    text = PROFILE.format(
        time=time, tasks=tasks, nodes=nodes, signal_seconds=signal_seconds, python=sys.executable, logs=folder / "logs",
        root=ROOT, wait=wait,
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


def test_a_run_on_two_ranks_is_requeued_by_a_signal_and_ends_as_an_undisturbed_one(tmp_path, at):
    reached = tmp_path / "reached"
    experiment = small_experiment(tmp_path / "runs", *KEYS, *tracked(tmp_path))
    words = profile(tmp_path, f"7 {reached}")
    job = submit_pretraining(write(experiment, tmp_path), [], words).jobs[0]
    log = Path(job.log)
    until(
        lambda: sorted(read(reached).split()) == ["0", "1"], 90, "step 7 on both ranks", lambda: read(log) + at.told()
    )
    at.command("scancel", "--signal=USR1", job.id)
    at.start_requeued(job.id, log)
    folder = run_folder(experiment)
    assert checkpoints(folder)[0].name == "step_00000007.ckpt"
    assert not (folder / FINISHED).exists()
    assert mlflow_runs(tmp_path)[0][1] == "RUNNING"
    assert at.wait(job.id, log) == "COMPLETED", read(log)
    print(read(log))
