"""Embeddings that are computed once: kept in a file as long as network and samples are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from brainage.data.source import ScanSource
from brainage.data.table import scan_keys
from brainage.downstream.features import Embeddings, read_embeddings, write_embeddings


def kept_embeddings(
    path: Path, model: str, data: ScanSource, compute: Callable[[], Embeddings], seen: np.ndarray | None = None
) -> Embeddings:
    """The embeddings in `path` if they are those of this model and these samples, else computed and written; `seen`
    are the scans of people whom the model was trained on."""
    source = f"{model}, store {data.store.checksum}"
    if path.is_file():
        kept = read_embeddings(path)
        if kept.source == source and scan_keys(kept.keys).tolist() == scan_keys(data.table).tolist():
            return kept
    found = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_embeddings(path, found.keys, found.trunk, found.head, source=source, seen=seen)
    return read_embeddings(path)


def checkpoint_digest(checkpoint: Path) -> str:
    """What identifies a network."""
    with checkpoint.open("rb") as file:
        return f"checkpoint {hashlib.file_digest(file, 'sha256').hexdigest()}"
