"""What a section is made of: a page of figures and tables, written to their files as they are put on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure

from brainage.reporting.run_folder import RunFolder
from brainage.reporting.style import save_figure
from brainage.reporting.table_files import write_table
from brainage.reporting.tables import Table

if TYPE_CHECKING:
    from brainage.reporting.evaluations import Evaluation


FORMS = {"figures": (".svg", ".png", ".pdf"), "tables": (".csv", ".tex")}  # folder -> files of one figure or table


class Drawn(NamedTuple):
    """A figure as the page shows it; `alt` says in words what it shows."""

    name: str
    source: str  # data URI
    alt: str
    caption: str


class Block(NamedTuple):
    """A piece of a section, of a kind that the template knows.

    Kinds: text, missing, table, figures, code, facts, terms, references, heading (its content is an address),
    contents (addresses and titles), checklist.
    """

    kind: str
    content: object
    title: str = ""
    folded: bool = False


@dataclass
class Canvas:
    """A folder into which figures and tables are written as they are put on a page."""

    path: Path
    pdf: bool = True  # whether figures are written as PDF too, the slowest of their forms
    written: set[str] = field(default_factory=set)  # names of figures and tables, without a suffix

    def draw(self, name: str, figure: Figure, *, alt: str, caption: str = "") -> Drawn:
        """Write the figure's files and give it to the page."""
        self.written.add(f"figures/{name}")
        return Drawn(name, save_figure(figure, self.path / "figures" / name, pdf=self.pdf), alt, caption)

    def write(self, table: Table) -> None:
        """Write a table's files without showing it."""
        self.written.add(f"tables/{table.name}")
        write_table(table, self.path / "tables")

    def table(self, table: Table, *, folded: bool = False) -> Block:
        """Write a table's files and give it to the page."""
        self.write(table)
        return Block("table", table, table.caption, folded)


def delete_others(canvases: Sequence[Canvas]) -> None:
    """Delete what an earlier page left in the folders `figures` and `tables` of the canvases: files of FORMS that none
    of them wrote. Other files, and folders within, stay."""
    kept = {
        (canvas.path / f"{name}{suffix}")
        for canvas in canvases
        for name in canvas.written
        for suffix in FORMS[name.partition("/")[0]]
        if suffix != ".pdf" or canvas.pdf
    }
    for folder, forms in ((canvas.path / name, forms) for canvas in canvases for name, forms in FORMS.items()):
        for path in folder.glob("*"):
            if path.suffix in forms and path not in kept and path.is_file():
                path.unlink()


class Page(Canvas):
    """A run and the page about it."""

    def __init__(self, run: RunFolder, evaluations: Sequence[Evaluation] = (), study: Path | None = None) -> None:
        super().__init__(run.path)
        self.run, self.evaluations, self.study = run, list(evaluations), study
        self.parts: dict[str, list[tuple[str, str]]] = {}  # of cohorts' sections built so far: name -> address, title

    def missing(self, what: str, how: str = "") -> Block:
        """A note in the place of what is not there, with the command that makes it."""
        return Block("missing", (what, how or f"brainage evaluate {self.run.path}"))


class Section(NamedTuple):
    """`build` gives the blocks; `anchor` is the section's address on the page."""

    anchor: str
    title: str
    build: Callable[[Page], list[Block]]
