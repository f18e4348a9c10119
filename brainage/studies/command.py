"""`brainage study`: the command, apart from the others because the cohorts are handed to it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Name = Annotated[str, typer.Argument(help="A shipped study (without one: they are listed) or a YAML file.")]
Words = Annotated[list[str] | None, typer.Argument(help="key=value for all arms, for example data.root=DIR")]


def add_study_command(
    app: typer.Typer, open_cohort: Callable[[Any], Any], layouts: Callable[[], dict[str, Callable[..., Path]]]
) -> None:
    """Give `app` the command. `open_cohort` makes an experiment's data module, `layouts` gives the cohort writers."""

    @app.command()
    def study(
        name: Name = "",
        overrides: Words = None,
        small: Annotated[bool, typer.Option("--small", help="On a simulated cohort, about 20 minutes.")] = False,
        show: Annotated[bool, typer.Option("--list", help="Print the cells and their state, and stop.")] = False,
        only: Annotated[int, typer.Option(help="Run this cell alone (from 0), as a job array does.")] = -1,
        prepare: Annotated[bool, typer.Option("--prepare", help="Fill the stores for all cells, and stop.")] = False,
        gather: Annotated[bool, typer.Option("--gather", help="Only write the results of what is finished.")] = False,
    ) -> None:
        """Train and evaluate what is missing of a study, then one results table with paired comparisons over seeds."""
        from brainage.studies.stage import list_studies, study_stage

        if not name:
            list_studies()
            return
        tasks = {"list": show, "only": only >= 0, "prepare": prepare, "gather": gather}
        asked = [task for task, given in tasks.items() if given]
        if len(asked) > 1:
            raise typer.BadParameter(f"--{asked[0]} and --{asked[1]}: expected one of them")
        task = asked[0] if asked else "all"
        failed = study_stage(
            name, overrides or [], small=small, task=task, only=only, open_cohort=open_cohort, layouts=layouts
        )
        sys.exit(1 if failed else 0)
