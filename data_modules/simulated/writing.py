"""What every writer of a simulated cohort shares: processes, atomic files, and the folder that says what it holds."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainage.errors import DataError
from brainage.imaging.simulate import Scan
from brainage.imaging.simulated_people import scans
from brainage.runtime import allowed_cores

_PEOPLE_A_TASK = 8
_VOXELS_WORTH_PROCESSES = 3e8  # about 10 s of one core; starting processes takes some seconds itself
_README = """Planted truth of a simulated cohort: acceleration, biological age and disease severity of each scan.
No reader opens this folder; only tests and studies that compare an estimate with the truth may.
"""


def map_people(
    sampler: Any,
    work: Callable[[Any, Sequence[tuple[Scan, str]]], list[Any]],
    people: pd.DataFrame,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[Any]:
    """`work(sampler, [(scan, split), ...])` on groups of people in processes; the results in the order of people.

    `workers` is 1 or more, see `worker_count`. `work` must be picklable and give one result a scan; the sampler goes
    to each process once.
    """
    todo = list(zip(scans(people), people["split"], strict=True))
    tasks = [todo[start : start + _PEOPLE_A_TASK] for start in range(0, len(todo), _PEOPLE_A_TASK)]
    processes = min(workers, len(tasks))
    results: list[Any] = []

    def collect(groups: Iterable[list[Any]]) -> list[Any]:
        for group in groups:
            results.extend(group)
            if on_progress:
                on_progress(len(results), len(todo))
        return results

    if processes == 1:
        return collect(work(sampler, task) for task in tasks)
    # spawn: a fork of a process whose torch or BLAS threads have run can deadlock
    with ProcessPoolExecutor(processes, get_context("spawn"), _keep_sampler, (sampler,)) as pool:
        return collect(pool.map(partial(_in_worker, work), tasks))


def worker_count(workers: int, arrays: int, shape: tuple[int, ...]) -> int:
    """`workers`, or where that is 0 one a core that this process may use for a long job and 1 for a short one."""
    if workers:
        return workers
    return allowed_cores() if arrays * math.prod(shape) > _VOXELS_WORTH_PROCESSES else 1


_sampler: Any = None  # of a worker process


def _keep_sampler(sampler: Any) -> None:
    global _sampler
    _sampler = sampler


def _in_worker(work: Callable[[Any, Any], list[Any]], task: Any) -> list[Any]:
    return work(_sampler, task)


def save_array(path: Path, array: np.ndarray) -> None:
    """float32 .npy, atomically."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array.astype(np.float32, copy=False))


def write_text(path: Path, text: str) -> None:
    """UTF-8 text, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Path of a temporary neighbour, which takes the name `path` only when the block ends without an error."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # ends alike: writers go by the suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); mend that and run again, finished files are kept"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def claim_folder(out: Path, parameters: dict[str, Any]) -> bool:
    """True when `out` already holds the finished cohort of these parameters; DataError when it holds anything else."""
    note = out / "simulation" / "parameters.json"
    if note.is_file():
        found = json.loads(note.read_text(encoding="utf-8"))
        finished = found.pop("finished", False)
        differing = [
            f"{key}: asked {parameters.get(key)!r}, found {found.get(key)!r}"
            for key in sorted({*parameters, *found})
            if parameters.get(key) != found.get(key)
        ]
        if differing:
            raise DataError(
                f"{out} holds a simulated cohort of other parameters ({'; '.join(differing)}); name another folder or "
                "delete this one"
            )
        return bool(finished)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} is not empty and holds no simulated cohort; name another folder, so that nothing is mixed"
        )
    write_text(note, json.dumps(parameters | {"finished": False}, indent=1))
    return False


def finish_folder(out: Path, parameters: dict[str, Any], people: pd.DataFrame) -> None:
    """Truth apart from what readers see, then the mark that the cohort is complete."""
    folder = out / "simulation"
    write_text(folder / "README.txt", _README)
    write_text(folder / "truth.tsv", people.to_csv(sep="\t", index=False))
    write_text(folder / "parameters.json", json.dumps(parameters | {"finished": True}, indent=1))
