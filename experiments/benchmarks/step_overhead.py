"""What the framework adds to a training step: the real run against a bare PyTorch loop, in turns within one process.

    python experiments/benchmarks/step_overhead.py [--steps 60] [--threads 1] [--tracking]

A whole `pretrain` (Lightning's loop, module, callbacks, journal, health looks, ends of epochs) on a simulated cohort
whose scans lie on the device. Behind each of its steps one step of a bare loop is made: the same network, input
rule, loss and optimiser called by hand on the batch of the step, and nothing else. A framework step lasts from the end
of one bare step to the start of the next, so that everything that is done between counts. Views are not augmented: that
would be work of both. Measured in CPU seconds of the process and by the clock.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from brainage.config import Experiment, load_experiment
from brainage.pretraining import run as running
from brainage.pretraining.optimisation import build_optimiser
from data_modules.cohort import CohortDataModule
from data_modules.simulated.openbhb import write_openbhb

SEED, SUBJECTS, SPACING_MM, BATCH = 0, 200, 6.0, 20
STILL = ("augment.flip_p=0", "augment.affine_p=0", "augment.crop_p=0", "augment.blur_p=0", "augment.noise_p=0",
         "augment.intensity_p=0", "augment.cutout_p=0")  # fmt: skip
NETWORKS = {
    "ResNet-18 x 0.25": ("data.modality=vbm", "encoder.name=resnet18", "encoder.width=0.25", "data.intensity=zscore"),
    "MLP 284-128": ("data.modality=vbm_roi", "encoder.name=mlp", "encoder.hidden=[128]", "data.intensity=standardise"),
}


class Bare:
    """The loop that a person would write."""

    def __init__(self, module: Any, experiment: Experiment) -> None:
        self.normaliser, self.encoder = copy.deepcopy(module.normaliser), copy.deepcopy(module.encoder)
        self.head, self.loss, self.views = copy.deepcopy(module.head), module.loss, experiment.augment.views
        weights = [*self.encoder.parameters(), *self.head.parameters()]
        self.optimiser = build_optimiser(experiment.optim, weights)

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        x = self.normaliser(batch["sample"]).repeat_interleave(self.views, dim=0)
        z = torch.nn.functional.normalize(self.head(self.encoder(x)), dim=-1)
        loss = self.loss(z.unflatten(0, (-1, self.views)), batch["age_years"], batch["subject"])
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


class InTurns(L.Callback):
    """Makes a bare step behind each of the framework's; the last callback, so that all others are behind as well."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.bare: Bare | None = None
        self.since = (0.0, 0.0)
        self.framework: list[tuple[float, float]] = []
        self.by_hand: list[tuple[float, float]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bare = Bare(pl_module, self.experiment)
        self.since = now()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.bare is not None
        middle = now()
        self.bare.step(batch)
        end = now()
        self.framework.append(difference(middle, self.since))
        self.by_hand.append(difference(end, middle))
        self.since = now()


def now() -> tuple[float, float]:
    """CPU and wall seconds."""
    return time.process_time(), time.perf_counter()


def difference(end: tuple[float, float], start: tuple[float, float]) -> tuple[float, float]:
    return end[0] - start[0], end[1] - start[1]


def measure(name: str, words: tuple[str, ...], folder: Path, options: argparse.Namespace) -> list[str]:
    runs = folder / name.replace(" ", "")
    experiment = load_experiment(
        "openbhb_exp",
        [*words, *STILL, f"data.root={folder / 'openbhb'}", f"data.batch_size={BATCH}", "data.workers=0",
         f"data.store={runs}_store", "data.resident=device", "data.prepare_workers=2", "data.val_fraction=0",
         f"runs={runs}", f"seed={SEED}", "trainer.accelerator=cpu", f"trainer.threads={options.threads}",
         "trainer.precision=fp32", "trainer.progress=false", "trainer.epochs=100000", "health.stop=false",
         f"tracking.enabled={options.tracking}", f"tracking.uri=sqlite:///{folder}/mlflow.db"],
    )  # fmt: skip
    turns = InTurns(experiment)
    build = running.build_trainer
    running.build_trainer = lambda e, own, **o: build(e, [*own, turns], max_steps=options.steps, **o)
    try:
        running.pretrain(experiment, CohortDataModule(experiment.data, seed=SEED))
    finally:
        running.build_trainer = build
    rows = []
    for place, clock in enumerate(("CPU", "wall")):
        ours = [1000 * spent[place] for spent in turns.framework[5:]]
        bare = [1000 * spent[place] for spent in turns.by_hand[5:]]
        middle, plain = statistics.median(ours), statistics.median(bare)
        turn = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
        rows.append(
            f"| {name}, {clock} | {plain:.1f} | {middle:.1f} | {middle / plain:.3f} | {turn:.3f} | "
            f"{sum(ours) / sum(bare):.3f} | {middle - plain:+.2f} | {(sum(ours) - sum(bare)) / len(ours):+.2f} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=65)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tracking", action="store_true", help="also into MLflow, whose sender is part of the process")
    parser.add_argument("--only", choices=list(NETWORKS), action="append")
    options = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, "
        f"lightning {L.__version__}, {options.threads} thread, load {load} at the start; seed {SEED}, batch {BATCH} "
        f"x 2 views, {options.steps} steps of which 5 warm up, tracking {options.tracking}\n"
    )
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_openbhb(
            folder / "openbhb", subjects=SUBJECTS, seed=SEED, spacing_mm=SPACING_MM, modalities=("vbm", "vbm_roi")
        )
        for name in options.only or NETWORKS:
            rows += measure(name, NETWORKS[name], folder, options)
    print(
        "\n| step | bare ms | framework ms | ratio of medians | median of ratios | ratio of sums | more ms, median |",
        end="",
    )
    print(" more ms, mean |\n|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
