"""Append-only files of JSON objects, one a line, that survive kill -9 and a full disk."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from brainage.runtime.console import warn

CHUNK = 65536


class LineFile:
    """One line is one write: a killed process leaves at most its last line torn, and the next open cuts that off."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._cut_torn_line()

    def append(self, values: dict[str, Any]) -> None:
        """Append one object. Raises OSError, with the file as it was, where the disk is full."""
        line = (json.dumps(values, allow_nan=False, ensure_ascii=False) + "\n").encode()
        size = os.fstat(self._file).st_size
        if os.write(self._file, line) != len(line):
            os.ftruncate(self._file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _cut_torn_line(self) -> None:
        end = size = os.fstat(self._file).st_size
        while end > 0:
            start = max(0, end - CHUNK)
            newline = os.pread(self._file, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._file, end)


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Each complete line from byte `offset` on, with the byte offset behind it. An absent file has no lines.

    A torn last line is not complete yet; a damaged line inside the file is an empty object, with a warning.
    """
    if not Path(path).exists():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            start, offset = offset, offset + len(line)
            try:
                values = json.loads(line)
                if not isinstance(values, dict):
                    raise ValueError("not an object")
            except ValueError:
                warn(f"{path}: the line at byte {start} is not readable and was skipped")
                values = {}
            yield values, offset
