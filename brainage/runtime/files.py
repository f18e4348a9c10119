"""Files that are either complete or absent."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def write_json_atomic(path: Path, values: Any, *, durable: bool = True) -> None:
    """Write JSON under a temporary name in the same folder, then rename it over `path`.

    NaN and infinities become null, since JSON has neither; numpy scalars become plain numbers, paths text.
    `durable=False` leaves out the flush to disk, for files that a power cut may take.
    """
    path = Path(path)
    text = json.dumps(_plain(values), indent=2, allow_nan=False) + "\n"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


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
