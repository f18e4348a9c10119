"""Which scans make the batch of a training step: a pure function of (seed, step), so that a resumed run needs no state.

Legend: n scans of the train split, B global batch size, S = n // B steps an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from brainage.errors import ConfigError


class StepBatches(Sampler[list[int]]):
    """Batches of positions in 0..n-1: each epoch is a fresh permutation, its last incomplete batch left out.

    Iterating starts at the step that `position` gives (the trainer's global step) and ends with that step's epoch; with
    fewer than B scans an epoch is one batch of all of them. `repeat_first=k` repeats the first k batches of epoch 0 for
    ever (to overfit on purpose).

    >>> batches = StepBatches(n=7, batch_size=3, seed=0)
    >>> [len(batch) for batch in batches], len(batches)
    ([3, 3], 2)
    >>> resumed = StepBatches(n=7, batch_size=3, seed=0, position=lambda: 3)
    >>> next(iter(resumed)) == batches.batch(3)
    True
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, *, position: Callable[[], int] | None = None, repeat_first: int = 0
    ) -> None:
        if n < 2:
            raise ConfigError(f"train split: expected at least 2 scans, found {n}; check data.limit and the split")
        self.n = n
        self.batch_size = min(batch_size, n)
        self.seed = seed
        self.position = position or (lambda: 0)
        self.repeat_first = repeat_first
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        steps = self.n // self.batch_size
        return min(steps, self.repeat_first) if self.repeat_first else steps

    def __iter__(self) -> Iterator[list[int]]:
        first = self.position()
        last = (first // len(self) + 1) * len(self)
        return (self.batch(step) for step in range(first, last))

    def batch(self, step: int) -> list[int]:
        """Positions of the global batch of one step, counted from 0 over the whole training."""
        epoch, within = divmod(step, len(self))
        order = self._permutation(0 if self.repeat_first else epoch)
        return order[within * self.batch_size : (within + 1) * self.batch_size].tolist()

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.n))
        return self._order[1]
