"""What a command of the command line said: see the fixture `command`."""

from __future__ import annotations

from typing import NamedTuple


class Done(NamedTuple):
    code: int
    out: str
    err: str

    def refusal(self) -> str:
        """The one line of a refusal."""
        assert self.code == 2, self
        lines = self.err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    def warnings(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("warning: ")]
