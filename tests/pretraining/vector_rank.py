"""`brainage train-rank` for the vector cohort, which no experiment can name: what tests let `pretrain` start.

`BRAINAGE_TEST_KILL="step ranks"` kills the ranks named (0, 1 or 01) at the end of a step, as a full memory would.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

import lightning as L

from brainage.config import read_experiment
from brainage.pretraining import run
from brainage.pretraining.launch import as_rank
from brainage.runtime.ranks import rank
from tests.scans import SimulatedScans


class Kill(L.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        step, victims = os.environ["BRAINAGE_TEST_KILL"].split()
        if trainer.global_step == int(step) and str(rank()) in victims:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--label")
    parser.add_argument("--parent", type=Path)
    parser.add_argument("--errors", type=Path)
    options = parser.parse_args()
    if os.environ.get("BRAINAGE_TEST_KILL"):
        build = run.build_trainer
        run.build_trainer = lambda experiment, callbacks, **more: build(experiment, [*callbacks, Kill()], **more)
    experiment = read_experiment(options.config)
    as_rank(
        experiment,
        lambda: SimulatedScans(experiment),
        label=options.label,
        parent=options.parent,
        errors=options.errors,
    )


if __name__ == "__main__":
    main()
