"""What the commands do: from an experiment and a profile to a submitted job, and a table of how the jobs are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from brainage.config import Experiment, load_experiment, run_folder
from brainage.errors import ConfigError
from brainage.runtime.console import console
from brainage.slurm.jobs import Job, submit, submitted
from brainage.slurm.profile import Profile, load_profile, split_overrides
from brainage.slurm.queue import ACTIVE, standings
from brainage.slurm.script import INDEX, array_script, command_script, deliver_script, pretrain_script
from brainage.tracking.store import SQLITE

FINISHED = "finished.json"


@dataclass(frozen=True)
class Submission:
    """Scripts by the name of their job, and the jobs, of which a dry run has none; `note`: why there is neither."""

    scripts: dict[str, str]
    jobs: list[Job]
    note: str = ""


def submit_pretraining(
    exp: str, words: Sequence[str], profile_name: str, *, data: str = "", dry_run: bool = False
) -> Submission:
    """Submit the pre-training of an experiment (and its evaluation, where it asks for one).

    Raises ConfigError for what the cluster would find out after hours in the queue: an unknown key, a batch smaller
    than the devices, a run that another job is working on.
    """
    own, of_profile = split_overrides([*words, *([f"data.root={json.dumps(data)}"] if data else [])])
    profile = load_profile(profile_name, of_profile)
    experiment = load_experiment(exp, [*own, *_devices(profile)])
    if experiment.data.batch_size < profile.tasks:
        raise ConfigError(
            f"data.batch_size={experiment.data.batch_size} for the {profile.tasks} devices of {profile.name}"
        )
    run = str(run_folder(experiment))
    name = Path(run).name
    asked = experiment.evaluate.after_training
    if not dry_run:
        if (Path(run) / FINISHED).is_file() and not (asked and not (Path(run) / "results.csv").is_file()):
            return Submission({}, [], f"finished before, nothing to submit: {run}")
        _refuse_second(profile, [run])
    script = pretrain_script(profile, name, [exp, *own], run, evaluate=asked)
    jobs = [] if dry_run else [submit(profile, name, script, [run], _tracking(experiment))]
    return Submission({name: script}, jobs)


def submit_study(
    name: str, words: Sequence[str], profile: str, *, small: bool = False, dry_run: bool = False
) -> Submission:
    """The cells of a study as a job array, behind a job that prepares what they read and before one that gathers."""
    from brainage.studies.stage import study_cells

    overrides, of_profile = split_overrides(list(words))
    form, cells = study_cells(name, overrides, small=small)
    command = ["study", name, *(["--small"] if small else []), *overrides]
    return submit_array(
        form.name,
        [*command, "--only", INDEX],
        [cell.experiment for cell in cells],
        load_profile(profile, of_profile),
        first=[*command, "--prepare"],
        last=[*command, "--gather"],
        dry_run=dry_run,
    )


def submit_array(
    name: str,
    words: Sequence[str],
    experiments: Sequence[Experiment],
    profile: Profile,
    *,
    first: Sequence[str] = (),
    last: Sequence[str] = (),
    limit: int = 0,
    dry_run: bool = False,
) -> Submission:
    """`brainage WORDS` for each experiment, INDEX in the words standing for its number; `brainage FIRST` is done before
    (what all of them read) and `brainage LAST` behind them.

    Members of an array that track into a sqlite file only keep their metrics (see `tracking`); one more job delivers
    them when the array is over.
    """
    if profile.nodes > 1:
        raise ConfigError(f"profile {profile.name}: nodes={profile.nodes}: expected 1, each of an array on one machine")
    if not any(INDEX in word for word in words):
        raise ConfigError(f"{name}: expected {INDEX} in the words of the command: {' '.join(words)}")
    runs = [str(run_folder(experiment)) for experiment in experiments]
    tracking = _tracking(experiments[0])
    submission = Submission({}, [])
    if not dry_run:
        _refuse_second(profile, runs)

    def add(job_name: str, script: str, of: list[str]) -> str:
        submission.scripts[job_name] = script
        if dry_run:
            return "PREVIOUS_JOB"
        submission.jobs.append(submit(profile, job_name, script, of, tracking))
        return submission.jobs[-1].id

    before = [f"--dependency=afterok:{add(f'{name}-prepare', command_script(profile, f'{name}-prepare', first), [])}",
              "--kill-on-invalid-dep=yes"] if first else []  # fmt: skip
    array = add(name, array_script(profile, name, words, len(runs), limit=limit, options=before), runs)
    if tracking.startswith(SQLITE):
        array = add("brainage-deliver", deliver_script(profile, runs, array), [])
    if last:
        after = [f"--dependency=afterany:{array}"]
        add(f"{name}-gather", command_script(profile, f"{name}-gather", last, options=after), [])
    return submission


def print_submission(submission: Submission) -> None:
    """The scripts of a dry run; else where the jobs log, what they train, where MLflow is."""
    if submission.note:
        console().print(submission.note, soft_wrap=True, markup=False)
    if not submission.jobs:
        for script in submission.scripts.values():
            print(script)
    for job in submission.jobs:
        lines = [f"job {job.id} submitted: {job.name}", f"  log     {job.log}"]
        if job.runs:
            lines += [f"  run     {job.runs[0]}" + (f" and {len(job.runs) - 1} more" if len(job.runs) > 1 else ""),
                      f"  MLflow  {job.tracking}"]  # fmt: skip
        console().print("\n".join(lines), soft_wrap=True, markup=False)
    if submission.jobs:
        console().print("next: brainage slurm status", markup=False)


def print_status(logs: str | Path, runs: Sequence[str] = ()) -> None:
    """One row a job; log and MLflow address below, since they are long."""
    jobs = submitted(logs)
    if not jobs:
        raise ConfigError(
            f"{logs}: no job was submitted from here; `brainage slurm pretrain` does, --logs names the folder"
        )
    found = standings(jobs, runs)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("job", "name", "state", "restarts", "step", "reason"):
        table.add_column(column, overflow="fold")
    for job in found:
        step = "" if job.step is None else str(job.step)
        table.add_row(job.id, job.name, job.state, str(job.restarts), step, job.reason)
    console().print(table)
    for job in found:
        where = f"  run {job.run}  MLflow {job.tracking}" if job.run else ""
        console().print(f"{job.id}  log {job.log}{where}", soft_wrap=True, markup=False)


def _refuse_second(profile: Profile, runs: Sequence[str]) -> None:
    jobs = submitted(profile.logs)
    for job in standings(jobs, runs) if jobs else []:
        if job.state in ACTIVE:
            raise ConfigError(
                f"{job.run}: job {job.id} ({job.state.lower()}) works on this run; scancel {job.id} ends it"
            )


def _devices(profile: Profile) -> list[str]:
    return [f"trainer.devices={profile.tasks_per_node}", f"trainer.nodes={profile.nodes}"]


def _tracking(experiment: Experiment) -> str:
    return experiment.tracking.uri if experiment.tracking.enabled else "off"
