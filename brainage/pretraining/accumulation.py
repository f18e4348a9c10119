"""Gradient accumulation (`trainer.accumulate`): a step of the optimiser takes the mean gradient of several batches.

It is not a bigger contrastive batch. Each batch's loss compares the scans of that batch with each other and with nobody
else, and each BatchNorm sees one batch: k batches of B scans have k B^2 pairs, one of k B scans has (k B)^2 of them.
Where a loss is a mean over scans (L1, L2, Huber) and no norm looks at the batch, the two are the same. Who wants the
bigger contrastive batch on a small device takes `trainer.chunk_samples`.

Steps are the optimiser's everywhere: schedules, checkpoints, journal, health, `global_step`. The last step of an epoch
averages the batches that are left. A checkpoint is written, and a signal answered, between steps only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Accumulation:
    """How the batches of an epoch make steps: `together` at a time, the last of them what is left.

    >>> plan = Accumulation(batches=5, together=2)
    >>> plan.steps, [plan.size(batch) for batch in range(5)], [plan.ends(batch) for batch in range(5)]
    (3, [2, 2, 2, 2, 1], [False, True, False, True, True])
    >>> [plan.first_batch(step) for step in range(4)]  # counted on over the epochs
    [0, 2, 4, 5]
    """

    batches: int  # of an epoch
    together: int

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return -(-self.batches // self.together)

    @property
    def words(self) -> str:
        """For the start-up panel, behind the batch."""
        return f", x {self.together} batches averaged, each compared within itself" if self.together > 1 else ""

    def size(self, batch: int) -> int:
        """Batches of the step that this batch of the epoch belongs to."""
        return min(self.together, self.batches - batch // self.together * self.together)

    def starts(self, batch: int) -> bool:
        """Whether this batch of the epoch is the first of a step."""
        return batch % self.together == 0

    def ends(self, batch: int) -> bool:
        """Whether the optimiser steps behind this batch of the epoch."""
        return (batch + 1) % self.together == 0 or batch + 1 == self.batches

    def first_batch(self, step: int) -> int:
        """Number of a step's first batch, counted from 0 over the whole training."""
        epoch, within = divmod(step, self.steps)
        return epoch * self.batches + within * self.together

    def number(self, step: int, batch: int) -> int:
        """Number over the whole training of a batch of the epoch, of a step that is under way."""
        return step // self.steps * self.batches + batch


def stand_at(loader: Any, position: Callable[[], int]) -> None:
    """Let the training loader start at a batch: its sampler counts batches, the trainer that it asks counts steps."""
    loader.batch_sampler.batches.position = position
