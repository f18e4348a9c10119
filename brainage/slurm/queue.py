"""How submitted jobs are: the queue's word, the accounting's where there is one, and what their runs have written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from brainage.errors import BrainageError
from brainage.slurm.jobs import Job, slurm
from brainage.tracking.courier import read_state
from brainage.tracking.journal import JOURNAL

GONE = "not in the queue"
ACTIVE = (
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "REQUEUED",
    "SUSPENDED",
    "RESIZING",
    "SIGNALING",
    "STOPPED",
)
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Standing:
    """Of one job, or of one number of an array."""

    id: str
    name: str
    state: str
    restarts: int
    reason: str
    run: str
    step: int | None  # last one that the run's journal has
    log: str
    tracking: str


@dataclass(frozen=True)
class _Queued:
    state: str
    restarts: int
    reason: str


def standings(jobs: Iterable[Job], runs: Iterable[str] = ()) -> list[Standing]:
    """How the jobs are, the newest last; with `runs`, those that work on these run folders only."""
    wanted = {_plain(run) for run in runs}
    queued, found = _queue(), []
    for job in jobs:
        for id_, task, run in _members(job):
            if wanted and _plain(run) not in wanted:
                continue
            now = queued.get(id_) or _accounted(id_) or _Queued(GONE, 0, "")
            finished = (Path(run) / "finished.json").is_file()
            state = "finished" if now.state == GONE and finished else now.state
            found.append(
                Standing(
                    id_,
                    job.name,
                    state,
                    now.restarts,
                    now.reason,
                    run,
                    last_step(Path(run)),
                    job.log_of(task),
                    address(Path(run)) or job.tracking,
                )
            )
    return found


def last_step(run: Path) -> int | None:
    """The last step whose loss the journal of a run has; None before the first."""
    path = run / JOURNAL
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().splitlines()
    steps = [line["step"] for line in map(_json, lines) if "train/loss" in line.get("metrics", {})]
    return max(steps, default=None)


def address(run: Path) -> str:
    """The web page of a run, where a server has it."""
    state = read_state(run)
    if not state.uri.startswith("http") or not state.run_id:
        return ""
    return f"{state.uri}/#/experiments/{state.experiment_id}/runs/{state.run_id}"


def _members(job: Job) -> list[tuple[str, int | None, str]]:
    """(id, number in the array, run folder); the job itself where it is none."""
    if "%a" not in job.log:
        return [(job.id, None, run) for run in job.runs[:1] or [""]]
    return [(f"{job.id}_{task}", task, run) for task, run in enumerate(job.runs)]


def _queue() -> dict[str, _Queued]:
    """What squeue knows of this user's jobs. A job that is over stays there for some minutes."""
    width = "JobArrayID:60,State:30,RestartCnt:12,Reason:80"
    found = {}
    for line in slurm("squeue", "--me", "--noheader", "--array", "--states=all", f"--Format={width}").splitlines():
        id_, state, restarts, *reason = line.split()
        found[id_] = _Queued(state, int(restarts), " ".join(word for word in reason if word != "None"))
    return found


def _accounted(id_: str) -> _Queued | None:
    """What the accounting remembers; None on a cluster that keeps no accounts."""
    try:
        lines = slurm("sacct", "--noheader", "--parsable2", "-X", "-j", id_, "--format=State,Reason").splitlines()
    except BrainageError:
        return None
    if not lines:
        return None
    state, _, reason = lines[-1].partition("|")  # a requeued job has one line a go where duplicates are kept
    return _Queued(re.split(r"\s", state.strip())[0], 0, reason if reason != "None" else "")


def _plain(run: str) -> str:
    return os.path.abspath(run)


def _json(line: bytes) -> dict:
    try:
        found = json.loads(line)
    except ValueError:  # the first one is cut, the last may be
        return {}
    return found if isinstance(found, dict) else {}
