"""`brainage slurm ...`: submit to a cluster, and see how the jobs are. No logic, as in `brainage.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

slurm = typer.Typer(no_args_is_help=True, add_completion=False, help="Train on a Slurm cluster.")

Words = Annotated[list[str] | None, typer.Argument(help="key=value of the experiment, slurm.key=value of the profile.")]
ProfileName = Annotated[str, typer.Option("--profile", help="A shipped profile (brainage slurm profiles) or a file.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the script and stop.")]
Root = Annotated[str, typer.Option("--data", help="Folder of the cohort as downloaded (same as data.root=DIR).")]


@slurm.command()
def pretrain(
    exp: Annotated[str, typer.Argument(help="A shipped experiment or a YAML file.")],
    words: Words = None,
    profile: ProfileName = "one_gpu",
    data: Root = "",
    dry_run: DryRun = False,
) -> None:
    """Submit a pre-training, which requeues itself before its time is over until it is finished."""
    from brainage.slurm.submission import print_submission, submit_pretraining

    print_submission(submit_pretraining(exp, words or [], profile, data=data, dry_run=dry_run))


@slurm.command()
def study(
    name: Annotated[str, typer.Argument(help="A shipped study or a YAML file.")],
    words: Words = None,
    profile: ProfileName = "one_gpu",
    small: Annotated[bool, typer.Option("--small", help="On a simulated cohort.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Submit a study: one job prepares, an array trains a cell in each member, one job gathers the results."""
    from brainage.slurm.submission import print_submission, submit_study

    print_submission(submit_study(name, words or [], profile, small=small, dry_run=dry_run))


@slurm.command()
def status(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders; none: all jobs submitted from here.")] = None,
    logs: Annotated[Path, typer.Option(help="Folder of the logs (slurm.logs of the profile).")] = Path("runs/slurm"),
) -> None:
    """State, restarts, last step, log and MLflow address of submitted jobs."""
    from brainage.slurm.submission import print_status

    print_status(logs, [str(run) for run in runs or []])


@slurm.command()
def profiles() -> None:
    """List the shipped profiles, one line each."""
    from brainage.slurm.profile import load_profile, shipped_profiles

    for name in shipped_profiles():
        print(f"{name:16} {load_profile(name).description}")
