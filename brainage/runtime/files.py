"""Files that are either complete or absent."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, write: Callable[[Path], Any], *, durable: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then rename it over `path`.

    `durable=False` leaves out the flush, for files that a power cut may take.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json_atomic(path: str | Path, values: Any, *, durable: bool = True) -> None:
    """Write JSON with `write_atomically`. NaN and infinities become null, since JSON has neither; numpy scalars become
    plain numbers, paths text."""
    text = json.dumps(_plain(values), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), durable=durable)


def _plain(values: Any) -> Any:
    if isinstance(values, dict):
        return {str(key): _plain(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_plain(value) for value in values]
    if hasattr(values, "item"):  # numpy and torch scalars
        values = values.item()
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return str(values) if isinstance(values, Path) else values
