"""The commands. No logic: each one loads an experiment, joins a cohort to the library, and prints what came of it."""

from __future__ import annotations

import errno
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from brainage.errors import BrainageError
from brainage.evaluation_cli import add_evaluation_commands
from brainage.experiment_files import with_root
from brainage.runtime.signals import heed
from brainage.slurm_cli import slurm
from brainage.studies.command import add_study_command

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Brain age from structural MRI: simulate | prepare | pretrain | evaluate | report, and doctor when in doubt.",
)

Exp = Annotated[str, typer.Argument(help="A shipped experiment (brainage experiments) or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, for example loss.sigma_years=4")]
Run = Annotated[Path, typer.Argument(help="Run folder, as printed by pretrain.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan (people, batches, disk, memory, time) and stop.")
]
Limit = Annotated[int, typer.Option("--limit", help="Only n scans of each split.", min=0)]
Root = Annotated[str, typer.Option("--data", help="Folder of the cohort as downloaded (same as data.root=DIR).")]


MENDABLE = {  # what the disk says -> what to do
    errno.ENOSPC: "free some and run the same command again, it goes on where it stopped",
    errno.EDQUOT: "free some and run the same command again, it goes on where it stopped",
    errno.EACCES: "name another folder (runs=DIR, data.store=DIR) or ask for the right to write there",
    errno.EROFS: "name another folder (runs=DIR, data.store=DIR)",
    errno.ENOTDIR: "something else lies where a folder should be; move it away",
    errno.EISDIR: "a folder lies where a file should be; move it away",
    errno.EEXIST: "something else lies where a folder should be; move it away",
    errno.EFBIG: "a limit on the size of files stops it (ulimit -f); lift it and run the same command again",
}


def main() -> None:
    """Entry point: errors a person can mend become one line and exit code 2."""
    heed()
    logging.getLogger("brainage").addHandler(logging.NullHandler())  # the stages say the same in their own lines
    try:
        app()
    except BrainageError as error:
        if hasattr(error, "__notes__"):  # of another rank, which has said it
            sys.exit(2)
        _refuse(str(error))
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        _refuse(f"{error.filename or 'disk'}: {error.strerror}; {MENDABLE[error.errno]}")


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


@app.command()
def experiments() -> None:
    """List the shipped experiments, one line each."""
    from brainage.config import load_experiment, shipped_experiments

    for name in shipped_experiments():
        print(f"{name:22} {load_experiment(name).description}")


@app.command()
def doctor() -> None:
    """Look at device, disk, memory, versions, MLflow and Slurm: what is wrong and how to mend it."""
    from brainage.doctor import diagnose, print_findings

    sys.exit(print_findings(diagnose()))


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    layout: Annotated[str, typer.Option(help="openbhb, adni, ukb, oasis3, icbm, ixi or bids.")] = "openbhb",
    subjects: Annotated[int, typer.Option(help="People.", min=10)] = 400,
    seed: Annotated[int, typer.Option(help="Equal seeds write equal files.")] = 0,
    spacing_mm: Annotated[float, typer.Option(help="Voxel size.", min=1.0)] = 4.0,
    modalities: Annotated[str, typer.Option(help="Comma-separated, such as vbm,vbm_roi; empty: the first.")] = "",
    options: Annotated[
        list[str] | None, typer.Option("--with", help="What only this layout knows, such as form=bids of adni.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; 0: one a core.")] = 0,
    dry_run: DryRun = False,
) -> None:
    """Write a simulated cohort with planted truth in the layout in which that cohort is published."""
    from brainage.config import nearest
    from brainage.errors import ConfigError
    from brainage.stages import keywords_of, progress_bar
    from data_modules.simulated import LAYOUTS

    if layout not in LAYOUTS:
        raise ConfigError(f"--layout {layout}: unknown{nearest(layout, list(LAYOUTS))}")
    shared = ("spacing_mm", "workers", "modalities", "on_progress")
    own = keywords_of(LAYOUTS[layout], options or [], f"--with of layout {layout}", given=shared)
    if modalities:
        own["modalities"] = modalities.split(",")
    if dry_run:
        print(f"would write {subjects} people at {spacing_mm:g} mm as {layout} to {out}")
        return
    with progress_bar("simulate", subjects) as advance:
        LAYOUTS[layout](
            out, subjects=subjects, seed=seed, spacing_mm=spacing_mm, workers=workers, on_progress=advance, **own
        )
    print(f"{subjects} people written to {out}; the planted truth is in {out / 'simulation' / 'truth.tsv'}")


@app.command()
def prepare(
    exp: Exp,
    overrides: Overrides = None,
    data: Root = "",
    limit: Limit = 0,
    shard: Annotated[str, typer.Option(help="i/n: only this part, as one job of an array; without it, merge.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Read the cohort once into its array store (resumes, checks disk first, merges shards)."""
    from brainage.cohort_stages import part_of, shard_stage
    from brainage.stages import prepare_stage, print_plan

    experiment = _experiment(exp, overrides, data, limit)
    part = part_of(shard) if shard else None
    cohort = _cohort(experiment)
    print_plan(experiment, cohort, network=False)
    if dry_run:
        return
    if part:
        shard_stage(cohort, part)
    else:
        prepare_stage(cohort)


@app.command()
def split(
    exp: Exp,
    out: Annotated[Path, typer.Option(help="Folder for the TSV files.")],
    overrides: Overrides = None,
    data: Root = "",
) -> None:
    """Write the split that an experiment would use, or all its folds (data.folds=5), as TSV files for data.split."""
    from brainage.cohort_stages import split_stage

    split_stage(_cohort(_experiment(exp, overrides, data, 0)), out)


@app.command()
def inspect(exp: Exp, overrides: Overrides = None, data: Root = "", limit: Limit = 0) -> None:
    """Data sheet of a cohort: people, ages, quality of every scan, thumbnails of the flagged ones (prepares first)."""
    from brainage.cohort_stages import inspect_stage
    from brainage.stages import prepare_stage

    cohort = _cohort(_experiment(exp, overrides, data, limit))
    prepare_stage(cohort)
    inspect_stage(cohort)


@app.command()
def pretrain(exp: Exp, overrides: Overrides = None, data: Root = "", limit: Limit = 0, dry_run: DryRun = False) -> None:
    """Prepare, pre-train (or continue, or find finished); evaluates too when evaluate.after_training is true."""
    from brainage.evaluation_stages import evaluate_stage
    from brainage.runtime.ranks import launched
    from brainage.stages import prepare_together, pretrain_stage, print_plan, refuse_untrainable

    experiment = _experiment(exp, overrides, data, limit)
    cohort = _cohort(experiment)
    refuse_untrainable(experiment, cohort)
    print_plan(experiment, cohort, network=dry_run)
    if dry_run:
        return
    prepare_together(experiment, cohort)
    run = pretrain_stage(experiment, cohort)
    if experiment.trainer.fast_dev_run or launched():  # processes that srun or torchrun started have done their part
        return
    if experiment.evaluate.after_training:
        evaluate_stage(experiment, cohort, run)
    else:
        print(f"next: brainage evaluate {run}")


@app.command(hidden=True)
def train_rank(config: Path, label: str = "pretrain", parent: Path | None = None, errors: Path = Path()) -> None:
    """One of the processes that train a network together; `pretrain` starts them."""
    from brainage.config import read_experiment
    from brainage.pretraining.launch import as_rank

    experiment = read_experiment(config)
    as_rank(experiment, lambda: _cohort(experiment), label=label, parent=parent, errors=errors)


@app.command()
def bench(
    exp: Exp,
    overrides: Overrides = None,
    data: Root = "",
    limit: Limit = 0,
    steps: Annotated[int, typer.Option(help="Steps timed for each row.", min=1)] = 20,
) -> None:
    """Images a second of the data alone, the network alone and both, loader wait and memory (prepares first)."""
    from brainage.bench import bench_stage
    from brainage.stages import prepare_stage

    experiment = _experiment(exp, overrides, data, limit)
    cohort = _cohort(experiment)
    prepare_stage(cohort)
    bench_stage(experiment, cohort, steps=steps, reopen=_cohort)


@app.command()
def check(exp: Exp, overrides: Overrides = None, data: Root = "") -> None:
    """Run the battery any cohort must pass on a few scans: columns, units, keys, splits, anatomy, store."""
    from tempfile import TemporaryDirectory

    from data_modules.check import check_cohort, format_checks
    from data_modules.mixture import open_members

    members = open_members(_experiment(exp, overrides, data, 0).data)
    passed = True
    for member in members:
        with TemporaryDirectory() as scratch:
            checks = check_cohort(member.reader, scratch)
        if len(members) > 1:
            print(f"{member.label}:")
        print(format_checks(checks))
        passed &= all(check.passed for check in checks)
    sys.exit(0 if passed else 1)


@app.command()
def withdraw(
    lists: Annotated[list[Path], typer.Argument(help="Withdrawal lists: one id a line.")],
    cohort: Annotated[str, typer.Option(help="Whose ids these are; of a mixture the member's name.")] = "ukb",
    store: Annotated[list[Path] | None, typer.Option(help="Array store to rewrite without them; repeatable.")] = None,
    run: Annotated[list[Path] | None, typer.Option(help="Run folder to clean of them; repeatable.")] = None,
) -> None:
    """Take people who withdrew their consent out of stores and run folders, and say what cannot be undone."""
    from brainage.cohort_stages import withdraw_stage

    withdraw_stage(lists, cohort, store or [], run or [])


@app.command()
def sync(run: Run) -> None:
    """Deliver to MLflow what it missed while it was away."""
    from brainage.tracking import sync_run

    points, messages = sync_run(run)
    print(f"{run}: {points} metric points and {messages} other messages delivered")


@app.command()
def ui(
    uri: Annotated[str, typer.Option(help="MLflow store to browse.")] = "sqlite:///mlflow.db",
    port: Annotated[int, typer.Option(help="Port of the page.")] = 5000,
    host: Annotated[str, typer.Option(help="0.0.0.0 shows it to other machines too.")] = "127.0.0.1",
) -> None:
    """Browse the runs in MLflow's web page."""
    from brainage.stages import serve_ui

    sys.exit(serve_ui(uri, host, port))


@app.command()
def demo(overrides: Overrides = None, limit: Limit = 0, dry_run: DryRun = False) -> None:
    """The whole road on two simulated cohorts, in about five minutes on two quiet cores."""
    from functools import partial

    from brainage.config import run_folder
    from brainage.demo import PATIENTS, SPACING_MM, SUBJECTS, run_demo
    from data_modules.simulated.adni import write_adni
    from data_modules.simulated.openbhb import write_openbhb

    experiment = _experiment("demo", overrides, "", limit)
    if dry_run:
        print(
            f"would simulate {SUBJECTS} people at {SPACING_MM:g} mm as OpenBHB in {experiment.data.root}, then prepare,"
            f" pre-train, evaluate and report in {run_folder(experiment)}, and judge the network on {PATIENTS} people"
            " of a simulated ADNI: about 5 minutes, 3 GiB of memory"
        )
        return
    run_demo(experiment, write_openbhb, partial(write_adni, form="bids", modalities=("vbm",)), _cohort)


def _experiment(exp: str, overrides: list[str] | None, data: str, limit: int) -> Any:
    from brainage.config import load_experiment

    return load_experiment(exp, with_root(overrides, data, limit))


def _cohort(experiment: Any) -> Any:
    from data_modules.cohort import CohortDataModule

    return CohortDataModule(experiment.data, seed=experiment.seed, overfit_batches=experiment.trainer.overfit_batches)


def _layouts() -> Any:
    from data_modules.simulated import LAYOUTS

    return LAYOUTS


add_evaluation_commands(app, _cohort)
add_study_command(app, _cohort, _layouts)
app.add_typer(slurm, name="slurm")

if __name__ == "__main__":
    main()
