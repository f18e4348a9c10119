"""Submitting: sbatch gets a script that is kept, and one line a job says which runs it works on and where it logs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from brainage.errors import BrainageError, ConfigError
from brainage.runtime.files import write_atomically
from brainage.slurm.profile import Profile

JOBS = "jobs.jsonl"
PATIENCE_S = 60  # of a controller that is busy


class SlurmError(BrainageError):
    """Slurm is not there, or refuses."""


@dataclass(frozen=True)
class Job:
    """A submitted job, or array of jobs."""

    id: str
    name: str
    log: str  # with %a in an array
    runs: list[str]  # run folders; of an array one for each number
    tracking: str  # where MLflow is
    submitted: float  # seconds since 1970

    def log_of(self, task: int | None = None) -> str:
        """The log of a job, or of one number of an array."""
        return self.log if task is None else self.log.replace("%a", str(task))


def submit(profile: Profile, name: str, script: str, runs: list[str], tracking: str) -> Job:
    """Write the script beside the logs, hand it to sbatch, and note the job. Raises SlurmError with sbatch's words."""
    folder = Path(profile.logs)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.sbatch"
    write_atomically(path, lambda draft: draft.write_text(script, encoding="utf-8"))
    number = slurm("sbatch", "--parsable", str(path)).strip().split(";")[0]  # "number;cluster" where there are several
    array = any(line.startswith("#SBATCH --array") for line in script.splitlines())
    log = folder / (f"{name}-{number}_%a.log" if array else f"{name}-{number}.log")
    job = Job(number, name, str(log), runs, tracking, time.time())
    line = json.dumps(asdict(job)) + "\n"
    with (folder / JOBS).open("a", encoding="utf-8") as file:
        file.write(line)
    return job


def submitted(logs: str | Path) -> list[Job]:
    """All jobs that were submitted from here, the oldest first; an unreadable line (a full disk's) is no job."""
    path = Path(logs) / JOBS
    jobs = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            jobs.append(Job(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return jobs


def slurm(*words: str) -> str:
    """What a command of Slurm prints. Raises SlurmError with its own words, ConfigError where there is no Slurm."""
    if not shutil.which(words[0]):
        raise ConfigError(
            f"{words[0]} not found: expected a login node of a Slurm cluster; --dry-run prints the script"
        )
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("SBATCH_")
    }  # the script says all
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, env=environment, check=False)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]}: no answer within {PATIENCE_S} s; try again") from None
    if done.returncode:
        raise SlurmError(f"{' '.join(words[:2])}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout
