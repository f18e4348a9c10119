"""How submitted jobs are, from what squeue, sacct and the run folders say."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from brainage.errors import ConfigError
from brainage.slurm import queue
from brainage.slurm.jobs import JOBS, Job, submitted
from brainage.slurm.queue import last_step, standings
from brainage.slurm_cli import slurm

SQUEUE = "5 RUNNING 2 None\n6_0 PENDING 0 BeginTime\n6_1 COMPLETED 1 None\n"


@pytest.fixture
def said(monkeypatch):
    """What the commands of Slurm print: squeue some jobs, sacct nothing."""
    words = {"squeue": SQUEUE, "sacct": ""}
    monkeypatch.setattr(queue, "slurm", lambda command, *options: words[command])
    return words


def jobs(folder) -> list[Job]:
    single = Job("5", "one", "logs/one-5.log", [str(folder / "one")], "sqlite:///mlflow.db", 0.0)
    array = Job("6", "many", "logs/many-6_%a.log", [str(folder / "a"), str(folder / "b")], "off", 0.0)
    return [single, array, Job("7", "old", "logs/old-7.log", [str(folder / "old")], "off", 0.0)]


def test_each_member_of_an_array_has_its_own_row(said, tmp_path):
    found = {job.id: job for job in standings(jobs(tmp_path))}
    assert {id_: (job.state, job.restarts, job.reason) for id_, job in found.items()} == {
        "5": ("RUNNING", 2, ""), "6_0": ("PENDING", 0, "BeginTime"), "6_1": ("COMPLETED", 1, ""),
        "7": (queue.GONE, 0, ""),
    }  # fmt: skip
    assert found["6_1"].log == "logs/many-6_1.log"
    assert found["6_1"].run == str(tmp_path / "b")
    assert [job.id for job in standings(jobs(tmp_path), [str(tmp_path / "b")])] == ["6_1"]


def test_what_the_queue_has_forgotten_is_known_from_accounts_or_the_run_folder(said, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "finished.json").write_text("{}")
    assert standings(jobs(tmp_path))[-1].state == "finished"
    said["sacct"] = "TIMEOUT|None\nCANCELLED by 0|None\n"
    assert standings(jobs(tmp_path))[-1].state == "CANCELLED"


def test_the_last_step_is_the_journals_and_a_torn_line_is_none(tmp_path):
    assert last_step(tmp_path) is None
    lines = [{"step": step, "time_ms": 0, "metrics": {"train/loss": 1.0}} for step in range(1, 2000)]
    lines.append({"step": 5000, "time_ms": 0, "metrics": {"age/mae": 1.0}})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 77')
    assert last_step(tmp_path) == 1999


def test_the_status_names_log_and_page_of_a_run(said, tmp_path, monkeypatch):
    job = Job("5", "one", "logs/one-5.log", [str(tmp_path / "one")], "http://here", 1.0)
    (tmp_path / JOBS).write_text(json.dumps(asdict(job)) + "\nnot a job\n")
    (tmp_path / "one").mkdir()
    state = {"uri": "http://here", "experiment_id": "3", "run_id": "abc", "metrics_bytes": 0, "outbox_bytes": 0}
    (tmp_path / "one" / "mlflow.json").write_text(json.dumps(state))
    result = CliRunner().invoke(slurm, ["status", "--logs", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "log logs/one-5.log" in result.output
    assert "http://here/#/experiments/3/runs/abc" in result.output
    assert "RUNNING" in result.output


def test_where_nothing_was_submitted_status_says_so(tmp_path):
    assert submitted(tmp_path) == []
    result = CliRunner().invoke(slurm, ["status", "--logs", str(tmp_path)])
    assert isinstance(result.exception, ConfigError)
