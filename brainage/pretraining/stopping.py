"""Stopping between two batches: the ranks agree that one of them was told to, save, and leave together."""

from __future__ import annotations

from typing import Any

import lightning as L

from brainage.pretraining.callbacks import Keeper
from brainage.pretraining.group import highest
from brainage.pretraining.module import PretrainingModule
from brainage.runtime import console
from brainage.runtime.signals import Stopped, heard


class Stopper(L.Callback):
    """Looks at the start of each step, where the step before is validated, journalled and, by the keeper that comes
    before this callback, perhaps saved. Before the first step there is nothing to save and it only leaves.

    Raises Stopped on all ranks.
    """

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainingModule)
        if not pl_module.accumulation.starts(batch_idx):
            return  # gradients of a step that is under way are in no checkpoint
        number = highest(heard())
        if not number:
            return
        self.keeper.save(trainer)
        stopped = Stopped(number, together=True)
        where = self.keeper.newest.name if self.keeper.newest else "nothing was trained yet"
        console().print(f"{stopped} after step {trainer.global_step}: {where}", markup=False, soft_wrap=True)
        raise stopped
