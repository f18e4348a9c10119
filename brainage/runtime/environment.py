"""What ran where: versions, hardware, git state, memory. No host name, no user name, no path."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import brainage
from brainage.runtime.device import allowed_cores

PACKAGES = (
    "torch", "lightning", "numpy", "pandas", "pyarrow", "scipy", "scikit-learn", "nibabel", "nilearn",
    "omegaconf", "matplotlib", "mlflow",
)  # fmt: skip
GIB = 2**30


def environment() -> dict[str, Any]:
    """Versions, operating system, cores, memory (GiB) and GPUs of this process, as plain values for JSON."""
    versions = {"brainage": brainage.__version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.machine()}",
        "cores": allowed_cores(),
        "memory_gib": round(_machine_memory_gib(), 1),
        "versions": versions,
        **_gpus(),
    }


def git_state(folder: Path | None = None) -> dict[str, Any]:
    """`commit` and `dirty` of the checkout that holds `folder` (default: this package).

    {} where git is absent, and where the package is installed inside somebody else's repository.
    """
    package = Path(__file__).parents[1]
    folder = package if folder is None else Path(folder)
    tracked = ["ls-files", "--error-unmatch", "__init__.py"] if folder == package else ["rev-parse", "--git-dir"]
    if _git(folder, *tracked) is None:
        return {}
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain")
    return {} if commit is None or changes is None else {"commit": commit, "dirty": bool(changes)}


def peak_memory_gib() -> float:
    """Highest resident memory so far, GiB: this process plus its largest finished child.

    With several children at once the true peak is higher; the operating system keeps no sum.
    """
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(peaks) * unit / GIB


def available_memory_gib() -> float:
    """Memory that a new process can still use, GiB: the machine's free memory or what the container has left."""
    limits = [_machine_memory_gib()]
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024 / GIB)
    except OSError:
        pass  # not Linux
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8").strip()
        if limit != "max":
            limits.append((int(limit) - int(used)) / GIB)
    except (OSError, ValueError):
        pass  # no cgroup v2
    return min(limits)


def _machine_memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def _gpus() -> dict[str, Any]:
    """Names of the GPUs; only when torch is loaded already, since loading it takes seconds."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {"gpus": []}
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"gpus": names, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
