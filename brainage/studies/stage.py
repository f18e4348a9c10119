"""What `brainage study` does: cells in their order, then the results of whatever is finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from brainage.errors import ConfigError
from brainage.runtime import console, warn
from brainage.studies.cells import Cell, cells_of
from brainage.studies.running import OpenCohort, WriteCohort, prepare_study, print_cells, run_cells, simulate_all
from brainage.studies.study import Form, form_of, load_study, shipped_studies

if TYPE_CHECKING:
    from brainage.studies.comparison import Gathered

Task = Literal["all", "list", "only", "prepare", "gather"]


def list_studies() -> None:
    """One line a shipped study."""
    for name in shipped_studies():
        study = load_study(name)
        console().print(f"{name:12} {study.description}", markup=False)


def study_cells(name: str, overrides: Sequence[str] = (), *, small: bool = False) -> tuple[Form, list[Cell]]:
    """The cells of a study, in the order in which `only` counts them."""
    form = form_of(load_study(name), small=small)
    return form, cells_of(form, overrides)


def study_stage(
    name: str,
    overrides: Sequence[str],
    *,
    small: bool,
    task: Task | str,
    only: int,
    open_cohort: OpenCohort,
    layouts: Callable[[], dict[str, WriteCohort]],
) -> dict[str, str]:
    """Do one task of a study; gives the reasons of the cells that failed now. ConfigError on a cell that is not there.

    all: run what is missing, then gather. only: run cell `only`. list, prepare, gather: what they say.
    """
    form, cells = study_cells(name, overrides, small=small)
    if task == "list":
        print_cells(cells)
        return {}
    if task == "gather":
        gather_stage(form, cells)
        return {}
    if task == "only" and not 0 <= only < len(cells):
        raise ConfigError(f"--only {only}: study {form.name} has cells 0 to {len(cells) - 1}; --list shows them")
    chosen = cells[only : only + 1] if task == "only" else cells
    if task == "prepare":
        prepare_study(form, chosen, open_cohort, layouts())
        return {}
    if form.simulate:
        simulate_all(form, layouts())
    failed = run_cells(chosen, open_cohort)
    if task == "all":
        gather_stage(form, cells)
    for cell, reason in failed.items():
        warn(f"{cell} failed: {reason}")
    return failed


def gather_stage(form: Form, cells: Sequence[Cell]) -> Path:
    """Write and print the results of what is finished; gives study.html."""
    from brainage.studies.comparison import gather
    from brainage.studies.pages import write_study

    gathered = gather(form, cells)
    page = write_study(study_folder(form, cells), form, gathered, {cell.arm: cell.subset for cell in cells})
    print_summary(form, gathered)
    if gathered.unfinished:
        warn(f"{len(gathered.unfinished)} of {len(cells)} cells are not finished: {', '.join(gathered.unfinished)}")
    console().print(f"study: {page}", soft_wrap=True)
    return page


def study_folder(form: Form, cells: Sequence[Cell]) -> Path:
    """`<runs>/studies/<name>`: beside the folder of the cells."""
    cells_folder = Path(cells[0].experiment.runs)
    return (cells_folder.parent if not form.simulate else cells_folder.parents[1]) / form.name


def print_summary(form: Form, gathered: Gathered) -> None:
    """Arms by metrics, means over seeds."""
    from brainage.studies.pages import summary_table

    if gathered.summary.empty:
        return
    shown = summary_table(form, gathered.summary).shown
    table = Table(title=f"{form.name}: means over seeds, t intervals", title_justify="left", box=SIMPLE_HEAD,
                  pad_edge=False, collapse_padding=True)  # fmt: skip
    for column in shown.columns:
        table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=column == "arm")
    for row in shown.itertuples(index=False):
        table.add_row(*("\n".join([v.main, *v.small[:1]]) if hasattr(v, "main") else str(v) for v in row))
    console().print(table)
