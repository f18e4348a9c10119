"""`brainage ...` for the vector cohort, which no experiment can name: what jobs of the tests start.

`BRAINAGE_TEST_WAIT="step file"` lets a run that was not stopped before wait behind a step until it is told to stop;
each rank that waits appends a line to the file.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import lightning as L

from brainage import cli
from brainage.pretraining import launch, run
from brainage.runtime.signals import heard, heed
from tests.scans import SimulatedScans

PATIENCE_S = 120


class Wait(L.Callback):
    """Makes the moment of a signal the same each time."""

    def __init__(self, step: int, file: Path) -> None:
        self.step = step
        self.file = file

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step != self.step:
            return
        with self.file.open("a") as file:
            file.write(f"{trainer.global_rank}\n")
        end = time.monotonic() + PATIENCE_S
        while not heard() and time.monotonic() < end:
            time.sleep(0.02)


def main() -> None:
    heed()
    launch.ENTRY = ("-m", "tests.slurm.vector_command", "train-rank")
    cli._cohort = SimulatedScans
    step, _, file = os.environ.get("BRAINAGE_TEST_WAIT", "").partition(" ")
    if step and os.environ.get("SLURM_RESTART_COUNT", "0") == "0" and not Path(file + ".over").exists():
        build = run.build_trainer
        wait = Wait(int(step), Path(file))
        run.build_trainer = lambda experiment, callbacks, **more: build(experiment, [wait, *callbacks], **more)
    cli.main()


if __name__ == "__main__":
    main()
