"""Which of the processes that train together this one is; known before torch is loaded.

torchrun says so in RANK, WORLD_SIZE and LOCAL_RANK, srun in SLURM_PROCID, the tasks of the step and SLURM_LOCALID. What
Slurm sets outside a step (in a batch script, where one process runs for all tasks) does not count.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Place(NamedTuple):
    """Of one process: its number, how many there are, and its number on this machine."""

    rank: int
    ranks: int
    local_rank: int


def place() -> Place:
    """Of this process; 0 of 1 where nobody started several."""
    torchrun = _numbers("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if torchrun:
        return Place(*torchrun)
    if os.environ.get("SLURM_STEP_ID", "").isdigit():  # of the step first: an interactive step is one task of many
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS"
        srun = _numbers("SLURM_PROCID", tasks, "SLURM_LOCALID")
        if srun and srun[1] > 1:
            return Place(*srun)
    return Place(0, 1, 0)


def rank() -> int:
    """Number of this process among those that train together, from 0."""
    return place().rank


def ranks() -> int:
    """Processes that train together."""
    return place().ranks


def local_rank() -> int:
    """Number of this process on its machine, from 0: which of its devices it takes."""
    return place().local_rank


def is_first() -> bool:
    """Whether this process writes the files and speaks for all."""
    return place().rank == 0


def launched() -> bool:
    """Whether somebody started several processes, of which this is one."""
    return place().ranks > 1


def _numbers(*names: str) -> list[int]:
    """Values of environment variables, none unless all of them are whole numbers."""
    values = [os.environ.get(name, "") for name in names]
    return [int(value) for value in values] if all(value.isdigit() for value in values) else []
