"""The commands after training: evaluate, embed, judge, report; the cohorts are handed to them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from brainage.errors import ConfigError
from brainage.experiment_files import with_root

OpenCohort = Callable[[Any], Any]  # an experiment -> its data module
Run = Annotated[Path, typer.Argument(help="Run folder, as printed by pretrain.")]
Words = Annotated[list[str] | None, typer.Argument(help="key=value, for example evaluate.bootstrap=500")]
Root = Annotated[str, typer.Option("--data", help="Folder of the cohort as downloaded (same as data.root=DIR).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan (people, sites, disk) and stop.")]


def add_evaluation_commands(app: typer.Typer, open_cohort: OpenCohort) -> None:
    """Give `app` the commands."""

    @app.command()
    def evaluate(
        run: Annotated[Path, typer.Argument(help="Run folder, as printed by pretrain; or a folder of run folders.")],
        overrides: Words = None,
        data: Root = "",
        on: Annotated[str, typer.Option("--on", help="Judge on another cohort: adni, oasis3 or a YAML file.")] = "",
        dry_run: DryRun = False,
    ) -> None:
        """Age, gap, diagnosis, site, trajectories, baselines, report; on the scans (and --limit) it was trained with.

        Overrides may change data.root, evaluate.* and other keys that leave the training as it is.
        """
        from brainage.evaluation_stages import evaluate_runs
        from brainage.runtime.ranks import launched

        if launched():
            raise ConfigError(
                "evaluate: expected one process, found several started by srun or torchrun; start it alone"
            )
        failed = evaluate_runs(
            run, lambda folder: _evaluate(folder, with_root(overrides, data), on, open_cohort, dry_run), dry_run=dry_run
        )
        sys.exit(1 if failed else 0)

    @app.command()
    def embed(
        run: Run,
        out: Annotated[Path, typer.Option(help="Parquet file to write.")],
        overrides: Words = None,
        data: Root = "",
        limit: Annotated[int, typer.Option("--limit", help="Only n scans of each split.", min=0)] = 0,
        dry_run: DryRun = False,
    ) -> None:
        """Embed any cohort (data.cohort=, data.modality=) with a trained encoder; refused when the contract differs."""
        from brainage.evaluation_stages import embed_stage, finished_run, run_experiment
        from brainage.stages import print_plan

        experiment = run_experiment(finished_run(run).folder, with_root(overrides, data, limit), other_cohort=True)
        cohort = open_cohort(experiment)
        print_plan(experiment, cohort, network=False)
        if not dry_run:
            embed_stage(experiment, cohort, run, out)

    @app.command()
    def judge(
        features: Annotated[Path, typer.Argument(help="CSV, TSV or parquet: ids and one number a feature.")],
        exp: Annotated[str, typer.Argument(help="Experiment whose cohort and protocol to judge by.")],
        out: Annotated[Path, typer.Option(help="Folder for results and predictions.")],
        overrides: Words = None,
        data: Root = "",
        label: Annotated[str, typer.Option(help="What to call these features; empty: the file's name.")] = "",
    ) -> None:
        """Judge the embeddings of any other tool by the same code, on the same people and resamples."""
        from brainage.config import load_experiment
        from brainage.downstream.external import judge_stage

        experiment = load_experiment(exp, with_root(overrides, data))
        judge_stage(experiment, open_cohort(experiment), features, label or features.stem, out)

    @app.command()
    def report(
        run: Run,
        study: Annotated[Path | None, typer.Option(help="Folder of a study (runs/studies/NAME) to show too.")] = None,
    ) -> None:
        """Write report.html again from the files of a run folder."""
        from brainage.reporting.report import write_report

        print(write_report(run, study))


def _evaluate(run: Path, overrides: list[str], on: str, open_cohort: OpenCohort, dry_run: bool) -> None:
    from brainage.evaluation_stages import (
        evaluate_on_stage,
        evaluate_stage,
        evaluation_experiment,
        finished_run,
        run_experiment,
    )
    from brainage.stages import prepare_stage, print_plan

    folder = finished_run(run).folder
    experiment, name = evaluation_experiment(folder, on, overrides) if on else (run_experiment(folder, overrides), "")
    cohort = open_cohort(experiment)
    print_plan(experiment, cohort, network=dry_run and not on)
    if dry_run:
        return
    prepare_stage(cohort)
    if on:
        evaluate_on_stage(experiment, cohort, folder, name)
    else:
        evaluate_stage(experiment, cohort, folder)
