"""`brainage doctor`: what of this machine stands in the way of a run, and how to mend it.

Each check gives findings: ok, warn (runs, but slower or with less) or fail (does not run). Nothing is changed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from rich.table import Table

from brainage.errors import ConfigError
from brainage.runtime.console import console
from brainage.runtime.device import allowed_cores
from brainage.runtime.environment import GIB, PACKAGES, available_memory_gib

DEMO_MEMORY_GIB = 6.0
DISK_FAIL_GIB, DISK_WARN_GIB = 1.0, 25.0  # a store of OpenBHB's grey-matter maps takes 17 GiB
SHARED_MEMORY_WARN_GIB = 1.0
TEMPLATES = ("t1", "gm", "wm")
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


class Finding(NamedTuple):
    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def diagnose(*, runs: str = "runs", stores: str = "stores", uri: str = "sqlite:///mlflow.db") -> list[Finding]:
    """All findings, for the folders where runs and stores go and the MLflow store in use.

    A check that breaks is a finding itself, so that one odd machine does not hide the others.
    """
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("versions", check_versions),
        ("device", check_device),
        ("precision", check_precision),
        ("threads", check_threads),
        ("memory", check_memory),
        ("disk", lambda: check_disk({"runs": runs, "stores": stores})),
        ("shared memory", check_shared_memory),
        ("MLflow", lambda: check_mlflow(uri)),
        ("templates", check_templates),
        ("Slurm", check_slurm),
    ]
    findings: list[Finding] = []
    for name, check in checks:
        try:
            findings += check()
        except Exception as error:
            found = f"the check itself failed: {type(error).__name__}: {error}"
            findings.append(Finding(name, "warn", found, "mend the other findings first; then report this one"))
    return findings


def print_findings(findings: list[Finding]) -> int:
    """Print a table (plain lines where there is no terminal) and give the exit code: 1 when anything fails."""
    out = console()
    if out.is_terminal:
        table = Table("check", "", "found", "what to do")
        for name, status, found, advice in findings:
            table.add_row(name, f"[{STYLES[status]}]{status}[/]", found, advice)
        out.print(table)
    else:
        for name, status, found, advice in findings:
            line = f"{status:4}  {name}: {found}" + (f" -> {advice}" if advice else "")
            out.print(line, soft_wrap=True, markup=False)
    failed = sum(finding.status == "fail" for finding in findings)
    warned = sum(finding.status == "warn" for finding in findings)
    out.print(f"{len(findings)} checks, {failed} failed, {warned} with a warning")
    return 1 if failed else 0


def check_versions(constraints: Path | None = None) -> list[Finding]:
    """Installed packages against the tested ones (constraints.txt of the checkout)."""
    tested = _tested_versions(constraints or Path(__file__).parents[1] / "constraints.txt")
    missing, differing = [], []
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        wanted = tested.get(name, version)
        if version.split("+")[0] != wanted.split("+")[0]:
            differing.append(f"{name} {version} (tested: {wanted})")
    if missing:
        return [Finding("versions", "fail", f"not installed: {', '.join(missing)}", "make install")]
    if differing:
        return [Finding("versions", "warn", "; ".join(differing), "make install puts the tested versions back")]
    return [Finding("versions", "ok", "as tested" if tested else "all there (no constraints.txt to compare with)")]


def check_device() -> list[Finding]:
    """The device that `trainer.accelerator=auto` takes, and a GPU that torch cannot use."""
    import torch

    build = f"torch {torch.__version__}, CUDA build {torch.version.cuda or 'none'}"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return [Finding("device", "ok", f"{len(names)} GPU: {', '.join(names)}; {build}")]
    cards = _nvidia_cards()
    if cards and torch.version.cuda is None:
        advice = "install a CUDA build: make install PIP_ARGS='--index-url ...' (pytorch.org lists them)"
        return [Finding("device", "warn", f"CPU, but the machine has {cards}; {build}", advice)]
    if cards:
        advice = f"update the driver to one for CUDA {torch.version.cuda}, or check CUDA_VISIBLE_DEVICES"
        return [Finding("device", "warn", f"CPU, but the machine has {cards} (name, driver); {build}", advice)]
    if torch.backends.mps.is_available():
        return [Finding("device", "ok", f"CPU; an Apple GPU is used with trainer.accelerator=gpu; {build}")]
    return [Finding("device", "ok", f"CPU; {build}", "small grids and narrow encoders only: see the demo experiment")]


def check_precision() -> list[Finding]:
    """The start-up guard on bf16 convolutions of the device in use."""
    from brainage.runtime.device import choose_device
    from brainage.runtime.precision import guard_precision

    device = choose_device("auto")
    try:
        guard_precision("bf16", device)
    except ConfigError as error:
        return [Finding("precision", "warn", str(error), "trainer.precision=fp32 on this machine")]
    return [Finding("precision", "ok", f"bf16 conv3d on {device.type} agrees with fp32")]


def check_threads() -> list[Finding]:
    """CPU threads against the cores that this process may use."""
    cores, machine = allowed_cores(), os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > cores:
        found = f"OMP_NUM_THREADS={wanted} on {cores} allowed cores"
        return [
            Finding("threads", "warn", found, f"export OMP_NUM_THREADS={cores}: more threads than cores are slower")
        ]
    note = "" if cores == machine else f" of the machine's {machine} (container or batch system)"
    return [Finding("threads", "ok", f"{cores} cores{note}")]


def check_memory() -> list[Finding]:
    free = available_memory_gib()
    if free < DEMO_MEMORY_GIB:
        advice = f"the demo needs {DEMO_MEMORY_GIB:g} GiB; close other programs, or lower data.batch_size"
        return [Finding("memory", "warn", f"{free:.1f} GiB free", advice)]
    return [Finding("memory", "ok", f"{free:.1f} GiB free")]


def check_disk(folders: dict[str, str]) -> list[Finding]:
    """Free space and write permission where runs and stores will be made."""
    findings = []
    for name, folder in folders.items():
        place = Path(folder).absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free / GIB
        elsewhere = "choose another disk: runs=/path or data.store=/path"
        if not (place.is_dir() and os.access(place, os.W_OK)):
            findings.append(Finding(f"disk: {name}", "fail", f"{place} is not a writable folder", elsewhere))
        elif free < DISK_FAIL_GIB:
            findings.append(Finding(f"disk: {name}", "fail", f"{free:.1f} GiB free at {place}", elsewhere))
        elif free < DISK_WARN_GIB:
            advice = f"enough for the demo; whole OpenBHB wants {DISK_WARN_GIB:g} GiB. {elsewhere}"
            findings.append(Finding(f"disk: {name}", "warn", f"{free:.1f} GiB free at {place}", advice))
        else:
            findings.append(Finding(f"disk: {name}", "ok", f"{free:.0f} GiB free at {place}"))
    return findings


def check_shared_memory(place: Path = Path("/dev/shm")) -> list[Finding]:
    """Loader processes hand their batches over in shared memory; containers have 64 MiB of it by default."""
    if not place.is_dir():
        return [Finding("shared memory", "ok", f"{place} absent (not Linux)")]
    free = shutil.disk_usage(place).free / GIB
    if free < SHARED_MEMORY_WARN_GIB:
        advice = "keep data.workers=0, or start the container with --shm-size=8g or --ipc=host"
        return [Finding("shared memory", "warn", f"{free:.2f} GiB free in {place}", advice)]
    return [Finding("shared memory", "ok", f"{free:.1f} GiB free in {place}")]


def check_mlflow(uri: str) -> list[Finding]:
    """Whether the tracking store answers within seconds."""
    from brainage.tracking.store import PROBE_S, absolute_uri, reach

    try:
        reach(absolute_uri(uri))
    except ConnectionError as error:
        advice = "runs go on without it and `brainage sync RUN` delivers later; start the server, or set tracking.uri"
        return [Finding("MLflow", "warn", f"{uri} not reached within {PROBE_S:g} s: {error}", advice)]
    return [Finding("MLflow", "ok", f"{uri} can be used")]


def check_templates() -> list[Finding]:
    """The MNI maps inside nilearn's wheel, from which cohorts are simulated."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        return [Finding("templates", "fail", "nilearn is not installed", "make install")]
    folder = Path(spec.origin).parent / "datasets" / "data"
    absent = [
        name for name in TEMPLATES if not (folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz").exists()
    ]
    if absent:
        advice = "pip install --force-reinstall nilearn (some Linux packages of it leave the data out)"
        return [Finding("templates", "fail", f"MNI maps absent from nilearn: {', '.join(absent)}", advice)]
    return [Finding("templates", "ok", "MNI maps of nilearn are there")]


def check_slurm() -> list[Finding]:
    there = [name for name in ("sbatch", "srun", "scontrol") if shutil.which(name)]
    if len(there) == 3:
        return [Finding("Slurm", "ok", "sbatch, srun and scontrol are there")]
    if there:
        return [Finding("Slurm", "warn", f"only {', '.join(there)}", "load the cluster's Slurm module")]
    return [Finding("Slurm", "ok", "not on this machine; only `brainage slurm` needs it")]


def _tested_versions(constraints: Path) -> dict[str, str]:
    """Package -> version of a constraints file; {} where brainage was installed without its checkout."""
    if not constraints.is_file():
        return {}
    lines = [line.split("#")[0].strip() for line in constraints.read_text(encoding="utf-8").splitlines()]
    pairs = [line.split("==") for line in lines if "==" in line]
    return {name.strip().lower().replace("_", "-"): version.split(";")[0].strip() for name, version in pairs}


def _nvidia_cards() -> str:
    """`name, driver version` of the NVIDIA cards the system sees, whatever torch says; empty where there are none."""
    words = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.split("\n")).strip("; ") if done.returncode == 0 else ""
