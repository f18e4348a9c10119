"""The run folder: what a run was given, whether it is finished, and that only one process trains it."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from brainage.config import Experiment, save_experiment
from brainage.data.source import ScanSource, data_digest
from brainage.data.splits import read_split, split_hash, write_split
from brainage.data.table import write_table, write_tsv
from brainage.errors import CheckpointError, ConfigError
from brainage.imaging.quality import read_quality
from brainage.pretraining.checkpoint import load_checkpoint
from brainage.runtime import environment, git_state, warn, write_json_atomic

FINISHED = "finished.json"
COMMAND = "BRAINAGE_COMMAND"  # what the person typed, for processes that another one started


@dataclass(frozen=True)
class Pretrained:
    """A finished run."""

    folder: Path
    checkpoint: Path
    trained: bool  # False: it was finished before
    seconds: float


def write_finished(folder: Path, checkpoint: Path, data: ScanSource, seconds: float) -> Pretrained:
    """Mark a run as finished: its last checkpoint, and the people and samples it was trained on."""
    values = {
        "checkpoint": checkpoint.name,
        "split_hash": data.split_hash,
        "data_digest": data_digest(data),
        "seconds": round(seconds, 1),
    }
    write_json_atomic(folder / FINISHED, values)
    return Pretrained(folder, checkpoint, trained=True, seconds=seconds)


def read_finished(folder: Path, data: ScanSource | None = None) -> Pretrained | None:
    """The finished run of a folder, or None. With `data`, raises CheckpointError unless it was trained on just these
    people and samples; always when its checkpoint is gone or torn."""
    marker = folder / FINISHED
    if not marker.is_file():
        return None
    values = json.loads(marker.read_text(encoding="utf-8"))
    path = folder / "checkpoints" / values["checkpoint"]
    if data is not None and values.get("withdrawn"):  # people left it afterwards: the others must be who they were
        left = split_hash(read_split(folder / "split.tsv"))
        refuse_other_data(folder, data, left, data_digest(data))
    elif data is not None:
        refuse_other_data(folder, data, values["split_hash"], values["data_digest"])
    load_checkpoint(path)  # torn or deleted: say so now
    return Pretrained(folder, path, trained=False, seconds=values["seconds"])


def refuse_other_data(where: Path, data: ScanSource, found_split: str, found_digest: str) -> None:
    """Raise CheckpointError when a run was trained on other people or other samples than these."""
    mend = "copy the experiment under another name, or start it again with checkpoint.resume=never"
    if found_split != data.split_hash:
        raise CheckpointError(
            f"{where}: trained on split {found_split}, the cohort's is {data.split_hash}: "
            f"people or splits changed; {mend}"
        )
    if found_digest != data_digest(data):
        raise CheckpointError(
            f"{where}: trained on other samples or ages than those in {data.store.path}: "
            f"scans were added, mended or prepared differently; {mend}"
        )


def write_inputs(folder: Path, experiment: Experiment, data: ScanSource) -> None:
    """Configuration, table, split, dropped scans, contract and environment, as the run found them."""
    save_experiment(experiment, folder / "config.yaml")
    write_table(data.table, folder / "table.parquet")
    write_tsv(data.dropped, folder / "dropped.tsv")
    write_split(data.split, folder / "split.tsv")
    if (overlap := data.overlap()) is not None:
        write_tsv(overlap, folder / "overlap.tsv")
    if (quality := read_quality(data.store)) is not None:
        write_table(quality, folder / "quality.parquet")
    write_json_atomic(folder / "contract.json", data.contract.to_dict())
    split = {"split_hash": data.split_hash, "split_source": data.split_source}
    found = {**environment(), "git": git_state(), **split, "command": command_line()}
    write_json_atomic(folder / "environment.json", found)


def command_line() -> str:
    """The command line that started this training, or nothing where brainage is used as a library."""
    if COMMAND in os.environ:
        return os.environ[COMMAND]
    return shlex.join(["brainage", *sys.argv[1:]]) if Path(sys.argv[0]).name == "brainage" else ""


def move_aside(folder: Path) -> None:
    """Keep an earlier run under another name."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    shutil.move(folder, target)
    warn(f"{folder}: checkpoint.resume=never, the earlier run is kept as {target.name}")


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; ConfigError when another process does."""
    with (folder / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder}: another process is training this run; wait for it or change the experiment"
            ) from None
        yield
