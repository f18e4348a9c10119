"""Lines for people: rich on a terminal, plain lines in a log file, and from rank zero only."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from brainage.runtime.ranks import is_first


@functools.cache
def console(stderr: bool = False) -> Console:
    """The console of results (stdout) or of warnings (stderr); silent on every rank but zero."""
    return Console(stderr=stderr, highlight=False, quiet=not is_first())


def warn(message: str) -> None:
    """One line on stderr. Never wrapped, so that a log file can be searched for it."""
    if is_first():
        line = Text.assemble(("warning: ", "yellow"), " ".join(message.split()))
        console(stderr=True).print(line, soft_wrap=True)


def print_panel(title: str, rows: Mapping[str, Any]) -> None:
    """The start-up panel: one row a fact. Where there is no terminal, `title` and then `key: value` lines."""
    out = console()
    if not out.is_terminal:
        lines = [title, *(f"  {key}: {value}" for key, value in rows.items())]
        out.print("\n".join(lines), soft_wrap=True, markup=False)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for key, value in rows.items():
        table.add_row(key, Text(str(value)))
    out.print(Panel(table, title=title, title_align="left", expand=False))


class Stages:
    """Wall time of the stages of one command.

    >>> stages = Stages()
    >>> with stages("prepare"):
    ...     pass
    >>> [name for name, seconds, share in stages.rows()]
    ['prepare']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time spent inside to stage `name`, also when the stage fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def rows(self) -> list[tuple[str, float, float]]:
        """(stage, seconds, share of all stages), in the order in which they first ran."""
        total = sum(self.seconds.values())
        return [(name, spent, spent / total if total else 0.0) for name, spent in self.seconds.items()]

    def print(self, title: str = "Where the time went") -> None:
        """A table of seconds and shares."""
        if not console().is_terminal:
            lines = [f"  {name}: {spent:.1f} s ({share:.0%})" for name, spent, share in self.rows()]
            lines += [f"  all: {sum(self.seconds.values()):.1f} s"]
            console().print("\n".join([title, *lines]), soft_wrap=True, markup=False)
            return
        table = Table("stage", title=title, title_justify="left")
        table.add_column("seconds", justify="right")
        table.add_column("share", justify="right")
        for name, spent, share in self.rows():
            table.add_row(name, f"{spent:.1f}", f"{share:.0%}")
        table.add_section()
        table.add_row("all", f"{sum(self.seconds.values()):.1f}", "")
        console().print(table)
