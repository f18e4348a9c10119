"""Seeds, threads and the device of a process. torch is imported inside the functions only."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

from brainage.errors import ConfigError

if TYPE_CHECKING:
    import torch


def allowed_cores() -> int:
    """Cores this process may use: its affinity mask and its container's CPU quota, not what the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="utf-8") as file:
            quota, period = file.read().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no cgroup v2: the affinity mask is all there is to know
    return cores


def set_threads(threads: int = 0) -> int:
    """Set the CPU threads of torch and give their number; 0 keeps torch's choice, but never above `allowed_cores`.

    (torch counts the machine's cores; inside a container with a quota that means several threads on each core, and
    a step takes several times as long.)
    """
    import torch

    wanted = threads if threads > 0 else min(torch.get_num_threads(), allowed_cores())
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)
    return torch.get_num_threads()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy's global generator and torch on every device."""
    import numpy as np
    import torch

    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed}: expected a whole number from 0 to 4294967295, the range that NumPy takes")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def choose_device(accelerator: str) -> torch.device:
    """The device of `trainer.accelerator`: auto takes CUDA where there is one and the CPU elsewhere.

    Raises ConfigError for `gpu` on a machine whose torch sees none.
    """
    import torch

    if accelerator not in ("auto", "cpu", "gpu"):
        raise ConfigError(f"trainer.accelerator={accelerator}: expected auto, cpu or gpu")
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if accelerator == "gpu" and torch.backends.mps.is_available():
        return torch.device("mps")
    if accelerator == "gpu":
        build = torch.version.cuda or "CPU only"
        raise ConfigError(
            f"trainer.accelerator=gpu: torch {torch.__version__} (CUDA build: {build}) sees no GPU;"
            " `brainage doctor` says why, trainer.accelerator=cpu goes on without one"
        )
    return torch.device("cpu")
