"""`brainage bench`: what an experiment's training step costs here, by itself and behind its loader.

Rows: the loader alone, the network alone (one batch on the device, again and again: views, forward, backward,
optimiser), and both, as training runs them but for logging and checkpoints (a few per cent at most, see
experiments/benchmarks). Then the same network in other precisions and layouts, where there is a GPU to choose for.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainage.config import Experiment
from brainage.data.source import ScanSource
from brainage.runtime import choose_device, console, set_threads
from brainage.runtime.environment import peak_memory_gib
from brainage.runtime.precision import set_tf32

Reopen = Callable[[Experiment], ScanSource]

WARM_STEPS = 3  # not timed: the first batches fill caches and choose kernels
GIB = 2**30
HOW_TO_READ = (
    "How to read it: `both` can be no faster than the slower of `data only` and `model only`. Where `data only` is the "
    "slower one, or the loader wait of `both` is above a few per cent, the network waits for data: raise data.workers, "
    "or keep the store in memory (data.resident=host, or device where it fits). Where `model only` is the slower one, "
    "data are no concern: change trainer.precision, trainer.channels_last, trainer.compile, or the network. Where "
    "`both` is slower than either, they share the same cores: fewer data.workers or trainer.threads. Memory is the "
    "process's own peak on a CPU (mapped files included), and what tensors took of the card on a GPU."
)
# Each differs from the published recipe (fp32, NCDHW) by what it says.
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32 NCDHW": {},
    "tf32": {"tf32": True},
    "bf16": {"precision": "bf16"},
    "bf16, channels_last": {"precision": "bf16", "channels_last": True},
    "bf16, channels_last, compile": {"precision": "bf16", "channels_last": True, "compile": True},
}
PLAIN = {"precision": "fp32", "tf32": False, "channels_last": False, "compile": False}


@dataclass(frozen=True)
class BenchRow:
    """One line of the table; `skipped` says why there are no numbers."""

    what: str
    images_per_s: float = float("nan")  # augmented views that go through a step
    step_ms: float = float("nan")
    loader_wait_share: float = float("nan")
    memory_gib: float = float("nan")
    skipped: str = ""


def run_bench(
    experiment: Experiment, data: ScanSource, *, steps: int = 20, reopen: Reopen | None = None
) -> list[BenchRow]:
    """Time so many steps of each kind on this machine's device, in this process, behind `WARM_STEPS`.

    `reopen` opens the same scans for a changed experiment: needed for the row with the store on the device. Nothing is
    written but the store.
    """
    device = choose_device(experiment.trainer.accelerator)
    set_threads(experiment.trainer.threads)
    rows = [
        _timed("data only", experiment, data, steps, loads=True, trains=False),
        _timed("model only", experiment, data, steps, loads=False, trains=True),
        _timed("both", experiment, data, steps, loads=True, trains=True),
    ]
    for name, changes in VARIANTS.items():
        what = f"model only, {name}"
        if reason := _why_not(changes, device.type, data.contract.kind):
            rows.append(BenchRow(what, skipped=reason))
            continue
        changed = dataclasses.replace(experiment.trainer, **{**PLAIN, **changes})
        variant = dataclasses.replace(experiment, trainer=changed)
        rows.append(_timed(what, variant, data, steps, loads=False, trains=True))
    what = "both, data.resident=device"
    if device.type != "cuda" or reopen is None:
        rows.append(BenchRow(what, skipped="needs a GPU" if device.type != "cuda" else "scans cannot be opened anew"))
    else:
        resident = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, resident="device"))
        rows.append(_timed(what, resident, reopen(resident), steps, loads=True, trains=True))
    return rows


def bench_stage(
    experiment: Experiment, data: ScanSource, *, steps: int = 20, reopen: Reopen | None = None
) -> list[BenchRow]:
    """Run and print the table, and how to read it."""
    import torch
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = run_bench(experiment, data, steps=steps, reopen=reopen)
    device, trainer = choose_device(experiment.trainer.accelerator), experiment.trainer
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    shape = " x ".join(map(str, data.contract.shape))
    console().print(
        f"{experiment.name}: {experiment.encoder.name} x {experiment.encoder.width:g} on {shape}, {hardware}, "
        f"torch {torch.__version__}, {trainer.precision}, {steps} steps on one device", soft_wrap=True, markup=False,
    )  # fmt: skip
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("", "images/s", "ms a step", "loader wait", "peak GiB"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        numbers = [
            _digits(row.images_per_s), _digits(row.step_ms), f"{row.loader_wait_share:.0%}", f"{row.memory_gib:.2f}",
        ]  # fmt: skip
        table.add_row(row.what, *(["-"] * 3 + [row.skipped] if row.skipped else numbers))
    console().print(table)
    console().print(HOW_TO_READ, markup=False)
    return rows


def _digits(value: float) -> str:
    """
    >>> _digits(3.456), _digits(1234.5)
    ('3.46', '1,234')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _why_not(changes: dict[str, Any], device: str, kind: str) -> str:
    if device != "cuda":
        return "needs a GPU"
    return "volumes only" if changes.get("channels_last") and kind != "volume" else ""


def _timed(what: str, experiment: Experiment, data: ScanSource, steps: int, *, loads: bool, trains: bool) -> BenchRow:
    """Time of so many steps. What is not loaded is one batch that stays on the device."""
    import torch

    device = choose_device(experiment.trainer.accelerator)
    with _as_trained(experiment):
        batches = _batches(data, device)
        step = _step_of(experiment, data, device) if trains else lambda batch, number: None
        batch = next(batches)
        for number in range(WARM_STEPS):
            batch = next(batches) if loads else batch
            step(batch, number)
        _reset_peak(device.type)
        _wait_for(device.type)
        start, waited = time.perf_counter(), data.loader_wait_s()
        samples = 0
        for number in range(WARM_STEPS, WARM_STEPS + steps):
            batch = next(batches) if loads else batch
            step(batch, number)
            samples += len(batch["age_years"]) * experiment.augment.views
        _wait_for(device.type)
        seconds = time.perf_counter() - start
        wait = min(1.0, (data.loader_wait_s() - waited) / seconds) if loads else 0.0
        peak = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else _peak_gib()
    batches.close()
    del step, batch
    gc.collect()
    return BenchRow(what, samples / seconds, 1000 * seconds / steps, wait, peak)


def _batches(data: ScanSource, device: Any) -> Generator[Any, None, None]:
    """Training batches on the device, epoch after epoch."""
    loader = data.train_dataloader()
    side = getattr(data, "on_after_batch_transfer", lambda batch, dataloader_idx: batch)
    while True:
        for batch in loader:
            moved = {
                name: values if name == "key" else values.to(device, non_blocking=True)
                for name, values in batch.items()
            }
            yield side(moved, 0)


def _step_of(experiment: Experiment, data: ScanSource, device: Any) -> Callable[[Any, int], None]:
    """A training step of the experiment's network and optimiser, in its precision."""
    import torch

    from brainage.pretraining.optimisation import build_optimiser
    from brainage.pretraining.run import build_module

    module = build_module(experiment, data).to(device)
    module.train()
    optimiser = build_optimiser(experiment.optim, module.parameters())
    precision = experiment.trainer.precision
    kind = torch.float16 if precision == "fp16" else torch.bfloat16
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def step(batch: Any, number: int) -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=kind, enabled=precision != "fp32"):
            loss = module.training_step(batch, number % module.accumulation.batches)
        scaler.scale(loss).backward()
        if experiment.optim.clip_norm:
            scaler.unscale_(optimiser)
            torch.nn.utils.clip_grad_norm_(module.parameters(), experiment.optim.clip_norm)
        scaler.step(optimiser)
        scaler.update()

    return step


@contextmanager
def _as_trained(experiment: Experiment) -> Iterator[None]:
    """Switches of torch as the trainer of the experiment sets them, put back afterwards."""
    import torch

    backends, trainer = torch.backends, experiment.trainer
    before = (backends.cudnn.benchmark, backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(trainer.deterministic, warn_only=True)
    backends.cudnn.benchmark = not trainer.deterministic
    set_tf32(trainer.tf32, choose_device(trainer.accelerator))
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        backends.cudnn.benchmark, backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = before


def _wait_for(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _reset_peak(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with suppress(OSError):  # then the peak is the highest of all rows so far
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew


def _peak_gib() -> float:
    """Highest resident memory of this process since `_reset_peak`, where the system keeps it, else since its start."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / GIB
    return peak_memory_gib()
