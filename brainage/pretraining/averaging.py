"""The moving average of the weights (`trainer.ema_decay`): validated and evaluated in place of the last weights.

With decay d the average behind step n is the mean of the weights behind all steps so far, step i with weight d^(n - i),
divided by the sum of those: exact from the first step on, where a recursion that starts from the random weights would
keep them (0.999^1000 = 0.37 of them after a thousand steps). Polyak & Juditsky 1992 average alike with d = 1; the
division is Adam's (Kingma & Ba 2015, section 3).

Parameters are averaged. Buffers (BatchNorm's running statistics, the scale of the input) are those of the training
weights: they are averages already, and counts and scales must not be mixed. Training goes on from its own weights,
which stay in the checkpoint beside the average. All ranks have equal weights after a step, hence equal averages.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from brainage.pretraining.module import PretrainingModule

AVERAGED = "brainage_averaged"  # key in the checkpoint, beside `state_dict`


class WeightAverage:
    """Mean of the parameters of a module over steps, recent ones counting more.

    >>> module = nn.Linear(1, 1, bias=False)
    >>> average = WeightAverage(decay=0.5)
    >>> for value in (1.0, 4.0):
    ...     _ = module.weight.data.fill_(value)
    ...     average.update(module)
    >>> average.weights["weight"].item()  # (0.5 x 1 + 1 x 4) / 1.5
    3.0
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Count the present weights as those of one step more."""
        self.steps += 1
        if not self.weights:
            self.weights = {name: weight.detach().clone() for name, weight in module.named_parameters()}
            return
        share = (1 - self.decay) / (1 - self.decay**self.steps) if self.decay < 1 else 1 / self.steps
        present = [weight.detach() for _, weight in module.named_parameters()]
        torch._foreach_lerp_(list(self.weights.values()), present, share)

    @torch.no_grad()
    def exchange(self, module: nn.Module) -> None:
        """Give the module the average and keep its weights instead, in place; once more changes both back."""
        for name, weight in module.named_parameters():
            kept = weight.detach().clone()
            weight.copy_(self.weights[name])
            self.weights[name].copy_(kept)


class Averaging(L.Callback):
    """Averages behind every step, validates the average, and writes it into checkpoints."""

    def __init__(self, decay: float) -> None:
        self.average = WeightAverage(decay)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        device = pl_module.device
        self.average.weights = {name: weight.to(device) for name, weight in self.average.weights.items()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainingModule)
        if pl_module.accumulation.ends(batch_idx):
            self.average.update(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.average.steps:
            self.average.exchange(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.average.steps:
            self.average.exchange(pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[AVERAGED] = {"steps": self.average.steps, "weights": self.average.weights}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.average.steps = checkpoint[AVERAGED]["steps"]
        self.average.weights = dict(checkpoint[AVERAGED]["weights"])


def evaluated_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The state of a module to evaluate: with averaged parameters where the checkpoint has them."""
    return {**checkpoint["state_dict"], **checkpoint.get(AVERAGED, {}).get("weights", {})}
