"""What an evaluation keeps in files: embeddings, as long as network and samples are the same, and its tables."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.config import Experiment, save_experiment
from brainage.data.source import ScanSource
from brainage.data.table import scan_keys, write_table, write_tsv
from brainage.downstream.features import Embeddings, read_embeddings, write_embeddings
from brainage.downstream.results import write_results


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


RESULTS = "results.csv"  # of an evaluation, written last
FRAMES = (  # every table of single people that an evaluation may write
    "predictions", "gaps", "diagnosis", "trajectories", "survival", "site_shuffles",
)  # fmt: skip


def write_evaluation(
    folder: Path,
    experiment: Experiment,
    table: pd.DataFrame,
    dropped: pd.DataFrame,
    frames: Mapping[str, pd.DataFrame],
    results: pd.DataFrame,
) -> None:
    """The files of an evaluation on a cohort that is not a run's own; `results.csv` vouches for the others."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).unlink(missing_ok=True)
    save_experiment(experiment, folder / "evaluation.yaml")
    write_table(table, folder / "table.parquet")
    write_tsv(dropped, folder / "dropped.tsv")
    write_frames(frames, folder)
    write_results(results, folder / RESULTS)


def write_frames(frames: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write each as `<name>.parquet`; one of FRAMES that this evaluation did not make is deleted, since it is of an
    earlier one."""
    for name in FRAMES:
        if name not in frames:
            (folder / f"{name}.parquet").unlink(missing_ok=True)
    for name, frame in frames.items():
        write_table(frame, folder / f"{name}.parquet")


def checkpoint_digest(checkpoint: Path) -> str:
    """What identifies a network."""
    with checkpoint.open("rb") as file:
        return f"checkpoint {hashlib.file_digest(file, 'sha256').hexdigest()}"
