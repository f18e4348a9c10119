"""What the ranking losses cost against their definitions, and how much memory large batches take.

    python experiments/benchmarks/losses.py [--repeat 7] [--threads 1] [--only speed|memory]

L^thr and Rank-N-Contrast at 512 embeddings, forward and backward, against their sums written down here: once as one
tensor of M^3, once as a loop over the positives (M^2 memory each), the form of most public code. Measured in turns, so
that another job on the machine disturbs all alike; figures are medians of the CPU seconds of one thread.
Memory is what the resident set of a fresh process grows by, at its highest, between the end of imports and the end of
forward and backward.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from brainage.config import from_plain
from brainage.losses import contrastive_loss
from brainage.losses.ranking import rnc_loss, thr_loss

SCANS, VIEWS, DIM = 256, 2, 128
TAU, SIGMA_YEARS = 0.1, 2.0
SEED = 0


def batch(scans: int, views: int, dim: int) -> tuple[Tensor, Tensor]:
    """z [N, V, D] that asks for gradients, and ages in years with some ties."""
    draw = torch.Generator().manual_seed(SEED)
    z = torch.randn(scans, views, dim, generator=draw).requires_grad_()
    return z, torch.randint(200, 800, (scans,), generator=draw) / 10


def pairs(z: Tensor, age_years: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flat embeddings [M, D], age distances [M, M] in float64, and who is no partner of whom (oneself)."""
    flat, ages = z.flatten(0, 1), age_years.repeat_interleave(z.shape[1]).double()
    return flat, (ages[:, None] - ages[None, :]).abs(), torch.eye(len(flat), dtype=torch.bool)


def thr_parts(z: Tensor, age_years: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    flat, distance, self_ = pairs(z, age_years)
    unit = torch.nn.functional.normalize(flat, dim=1)
    weight = torch.exp(-(distance.to(unit.dtype) ** 2) / (2 * SIGMA_YEARS**2)).masked_fill(self_, 0)
    return unit @ unit.T / TAU, weight / weight.sum(1, keepdim=True), distance, self_


def summed(similarity: Tensor, beyond: Tensor) -> tuple[Tensor, Tensor]:
    """log sum exp over the last axis where `beyond`, and whether there is anybody."""
    low = torch.finfo(similarity.dtype).min
    return similarity.masked_fill(~beyond, low).logsumexp(-1), beyond.any(-1)


def thr_cubic(z: Tensor, age_years: Tensor) -> Tensor:
    similarity, weight, distance, self_ = thr_parts(z, age_years)
    beyond = (distance[:, None, :] > distance[:, :, None]) & ~self_[:, None, :]  # [anchor, positive, column]
    repelled, anybody = summed(similarity[:, None, :].expand(beyond.shape), beyond)
    return (weight * torch.where(anybody, repelled - similarity, 0.0)).sum(1).mean()


def thr_looped(z: Tensor, age_years: Tensor) -> Tensor:
    similarity, weight, distance, self_ = thr_parts(z, age_years)
    total = similarity.new_zeros(())
    for k in range(len(similarity)):  # one positive of all anchors at a time
        repelled, anybody = summed(similarity, (distance > distance[:, k : k + 1]) & ~self_)
        total = total + (weight[:, k] * torch.where(anybody, repelled - similarity[:, k], 0.0)).sum()
    return total / len(similarity)


def rnc_parts(z: Tensor, age_years: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    flat, distance, self_ = pairs(z, age_years)
    apart = (flat[:, None] - flat[None, :]).square().sum(-1).clamp_min(1e-24).sqrt()
    return -apart / 2.0, distance, self_


def rnc_cubic(z: Tensor, age_years: Tensor) -> Tensor:
    similarity, distance, self_ = rnc_parts(z, age_years)
    beyond = (distance[:, None, :] >= distance[:, :, None]) & ~self_[:, None, :]
    repelled, _ = summed(similarity[:, None, :].expand(beyond.shape), beyond)
    return (repelled - similarity).masked_fill(self_, 0.0).sum() / (len(similarity) * (len(similarity) - 1))


def rnc_looped(z: Tensor, age_years: Tensor) -> Tensor:
    similarity, distance, self_ = rnc_parts(z, age_years)
    total = similarity.new_zeros(())
    for k in range(len(similarity)):
        repelled, _ = summed(similarity, (distance >= distance[:, k : k + 1]) & ~self_)
        total = total + (repelled - similarity[:, k]).masked_fill(self_[:, k], 0.0).sum()
    return total / (len(similarity) * (len(similarity) - 1))


FORMS: dict[str, dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "L^thr": {
        "ours": lambda z, age: thr_loss(z, age, temperature=TAU, sigma_years=SIGMA_YEARS),
        "cubic": thr_cubic,
        "looped": thr_looped,
    },
    "Rank-N-Contrast": {"ours": rnc_loss, "cubic": rnc_cubic, "looped": rnc_looped},
}


def timed(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float, float, Tensor]:
    """CPU seconds, wall seconds, value and gradient of one forward and backward pass."""
    z, age_years = batch(SCANS, VIEWS, DIM)
    wall, cpu = time.perf_counter(), time.process_time()
    value = function(z, age_years)
    value.backward()
    spent = time.process_time() - cpu, time.perf_counter() - wall
    assert z.grad is not None
    return *spent, value.item(), z.grad


def speeds(repeat: int) -> list[str]:
    rows = []
    for loss, forms in FORMS.items():
        found: dict[str, list[tuple[float, float, float, Tensor]]] = {form: [] for form in forms}
        for turn in range(repeat + 1):
            for form, function in forms.items():
                result = timed(function)
                if turn:  # the first warms up
                    found[form].append(result)
        ours = found["ours"][0]
        for form, results in found.items():
            cpu = [result[0] for result in results]
            wall = statistics.median(result[1] for result in results)
            off = float((results[0][3] - ours[3]).norm() / ours[3].norm())
            ratio = statistics.median(
                result[0] / own[0] for result, own in zip(results, found["ours"], strict=True)
            )  # of neighbours in time
            times = "" if form == "ours" else f"{ratio:.0f}x"
            low, middle, high = (1000 * value for value in (min(cpu), statistics.median(cpu), max(cpu)))
            times_ms = f"{middle:.1f} ({low:.1f} to {high:.1f}) | {1000 * wall:.1f}"
            rows.append(f"| {loss}, {form} | {times_ms} | {times} | {results[0][2]:.5f} | {off:.1e} |")
    return rows


MEMORY = {
    "L^thr, 4096 embeddings": {"name": "thr", "scans": 2048, "views": 2, "chunk": 0},
    "Rank-N-Contrast, 4096 embeddings": {"name": "rnc", "scans": 2048, "views": 2, "chunk": 0},
    "L^thr, 4096 embeddings, 256 rows at a time": {"name": "thr", "scans": 2048, "views": 2, "chunk": 256},
    "Rank-N-Contrast, 4096 embeddings, 256 rows at a time": {"name": "rnc", "scans": 2048, "views": 2, "chunk": 256},
    "L^exp, 32,768 embeddings, 512 rows at a time": {"name": "exp", "scans": 32768, "views": 1, "chunk": 512},
}


def peak_bytes() -> int:
    if sys.platform.startswith("linux"):  # getrusage would tell at least that of the process that started this one
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def child(which: str) -> None:
    """Print what one forward and backward pass adds to this process's peak, and its CPU seconds."""
    setting = MEMORY[which]
    config = from_plain(
        {"name": "memory", "loss": {"name": setting["name"], "chunk_rows": setting["chunk"], "temperature": TAU}}
    ).loss
    loss = contrastive_loss(config)
    small, age = batch(8, setting["views"], DIM)
    loss(small, age).backward()  # what torch loads at a first pass is not the loss's
    z, age = batch(setting["scans"], setting["views"], DIM)
    before, start = peak_bytes(), time.process_time()
    loss(z, age).backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    print(peak_bytes() - before, time.process_time() - start)


def memories() -> list[str]:
    rows = []
    for which in MEMORY:
        done = subprocess.run([sys.executable, __file__, "--child", which], capture_output=True, text=True, check=True)
        grown, seconds = map(float, done.stdout.split())
        rows.append(f"| {which}, D = {DIM} | {grown / 1e9:.2f} GB | < 2 GB | {seconds:.1f} |")
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["speed", "memory"])
    parser.add_argument("--child", choices=list(MEMORY))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        child(options.child)
        return
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{options.threads} thread, load {load} at the start; seed {SEED}, {options.repeat} repeats\n"
    )
    if options.only != "memory":
        print(
            f"| {SCANS} scans x {VIEWS} views, D = {DIM} | CPU ms (range) | wall ms | ours is faster | value | ", end=""
        )
        print("gradient off |\n|---|---|---|---|---|---|")
        print("\n".join(speeds(options.repeat)), flush=True)
    if options.only != "speed":
        print("\n| forward and backward | memory | goal | CPU s |\n|---|---|---|---|")
        print("\n".join(memories()))


if __name__ == "__main__":
    main()
