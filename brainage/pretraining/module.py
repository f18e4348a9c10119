"""What contrastive and supervised pre-training share: input, views, encoder, optimiser.

Legend: B scans of the batch (of this rank, where there are several), V views, N = B V samples, D embedding, F trunk
features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from brainage.augment import apply_views, draw_views
from brainage.config import Experiment
from brainage.encoders import build_encoder
from brainage.imaging.contract import InputContract
from brainage.pretraining.accumulation import Accumulation, stand_at
from brainage.pretraining.caching import batch_norms, in_chunks
from brainage.pretraining.compiled import Compiled
from brainage.pretraining.gather import mean_over_ranks
from brainage.pretraining.group import highest
from brainage.pretraining.optimisation import build_optimiser, rate_factor
from brainage.runtime.precision import exact_products


class Normaliser(nn.Module):
    """Stored samples -> encoder input, float32.

    Rules: `none`; `zscore`, each image by the mean and standard deviation of all its voxels, as the OpenBHB baselines
    do; `standardise`, each value by the train set's (see `fit`).
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, rule: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.rule = rule
        size = shape if rule == "standardise" else ()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("sd", torch.ones(size))

    def fit(self, samples: np.ndarray, rows: np.ndarray) -> None:
        """Learn mean and standard deviation of every value over `rows`; only `standardise` learns anything.

        Constant values get standard deviation 1, so that they become 0. One row is held at a time.
        """
        if self.rule != "standardise":
            return
        total = np.zeros(samples.shape[1:])
        squares = np.zeros(samples.shape[1:])
        first = samples[rows[0]].astype(np.float64)  # subtracted first: a large mean must not eat the digits
        for row in rows:
            centred = samples[row].astype(np.float64) - first
            total += centred
            squares += centred**2
        mean = total / len(rows)
        sd = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
        scale = np.where(sd > 1e-6 * np.maximum(np.abs(mean + first), 1e-12), sd, 1.0)
        self.mean.copy_(torch.from_numpy(mean + first))
        self.sd.copy_(torch.from_numpy(scale))

    def forward(self, samples: Tensor) -> Tensor:
        """[N, *shape] of any type -> float32, same shape."""
        x = samples.float()
        if self.rule == "zscore":
            axes = tuple(range(1, x.ndim))
            sd, mean = torch.std_mean(x, dim=axes, keepdim=True, correction=0)
            return (x - mean) / sd.clamp_min(1e-6)
        if self.rule == "standardise":
            return (x - self.mean) / self.sd
        return x


class PretrainingModule(L.LightningModule, ABC):
    """Base of both modules. Subclasses give `head`, `loss_of` and what validation reports.

    Every random number of training follows from (seed, batch, scan): a resumed run repeats the interrupted one.
    """

    head: nn.Module
    loss: Callable[..., Tensor]

    def __init__(self, experiment: Experiment, contract: InputContract, *, batches_per_epoch: int = 1) -> None:
        super().__init__()
        self.experiment = experiment
        self.contract = contract
        self.accumulation = Accumulation(batches_per_epoch, experiment.trainer.accumulate)
        self.steps_per_epoch = self.accumulation.steps
        self.total_steps = self.steps_per_epoch * experiment.trainer.epochs
        self.normaliser = Normaliser(experiment.data.intensity, contract.shape)
        self.encoder = build_encoder(experiment.encoder, contract)
        self.layout: torch.memory_format | None = None  # of volumes and of the weights of their convolutions
        if experiment.trainer.channels_last and contract.kind == "volume":
            self.layout = torch.channels_last_3d
            self.encoder.to(memory_format=self.layout)  # type: ignore[call-overload]  # torch leaves it out
        self._compiled: Compiled | None = None
        self.outputs: dict[str, Tensor] = {}  # of the last training step, detached: what the callbacks look at
        self.loss_setting: dict[str, Any] = {}  # further keywords of the last batch's loss
        self.validation: list[dict[str, Tensor]] = []

    def compile_encoder(self) -> None:
        """Run the encoder through torch.compile; weights keep their names, no module holds them twice."""
        self._compiled = Compiled(self.encoder)

    def encode(self, x: Tensor) -> Tensor:
        """Encoder input [N, *shape] -> trunk features [N, F], in the layout and by the compiler asked for."""
        if self.layout is not None:
            x = x.contiguous(memory_format=self.layout)
        return self._compiled(x) if self._compiled is not None else self.encoder(x)

    def transfer_batch_to_device(self, batch: dict[str, Any], device: torch.device, dataloader_idx: int) -> Any:
        """Everything but the keys, which the host draws views from: reading them back would wait for the device."""
        moved = {name: value for name, value in batch.items() if name != "key"}
        return {**super().transfer_batch_to_device(moved, device, dataloader_idx), "key": batch["key"]}

    def views(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """Normalised, augmented samples [N, *shape] of a batch, a scan's views adjacent."""
        drawn = draw_views(
            self.experiment.augment,
            self.contract,
            batch["key"].cpu().numpy().astype(np.uint64),
            seed=self.experiment.seed,
            step=step,
        )
        with torch.autocast(self.device.type, enabled=False):
            return apply_views(self.normaliser(batch["sample"]), drawn)

    def trunk(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """Trunk features [N, F] of a batch's views; with `trainer.chunk_samples` of so many views at a time."""
        scans = max(1, self.experiment.trainer.chunk_samples // self.experiment.augment.views)
        chunks = -(-highest(len(batch["age_years"])) // scans) if self.experiment.trainer.chunk_samples else 1
        if chunks < 2:  # all ranks have as many chunks: synchronised norms meet in each of them
            return self.encode(self.views(batch, step))
        return in_chunks(lambda part: self.encode(self.views(part, step)), batch, chunks, batch_norms(self.encoder))

    def embed(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Stored samples [N, *shape] -> (trunk [N, F], head [N, D]), float32, without augmentation."""
        trunk = self.encode(self.normaliser(samples))
        return trunk.float(), self.head_output(trunk).float()

    def head_output(self, trunk: Tensor) -> Tensor:
        """What the head makes of trunk features: an embedding, or ages in years."""
        return self.head(trunk)

    @abstractmethod
    def loss_of(self, trunk: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """This rank's part of the loss, whose mean over ranks is the global one, and what health and validation look
        at, of all ranks: `z` [B, V, D], `age_years` [B], `subject` [B]; from this rank's trunk features [N, F]."""

    def on_train_start(self) -> None:
        if self.accumulation.together > 1:  # else a step is a batch
            stand_at(self.trainer.train_dataloader, lambda: self.accumulation.first_batch(self.global_step))

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        # Dropout and everything else that asks torch for numbers: a function of (seed, batch, rank), not of history.
        # The ranks drop different units; views, whose seeds are their scans', do not depend on the number of ranks.
        number = self.accumulation.number(self.global_step, batch_idx)
        source = np.random.SeedSequence([self.experiment.seed, number, self.global_rank])
        torch.manual_seed(int(source.generate_state(1)[0]))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        trunk = self.trunk(batch, self.accumulation.number(self.global_step, batch_idx))
        with self._full_precision():  # losses in float32 whatever the encoder's precision
            loss, seen = self.loss_of(trunk.float(), batch)
        self.outputs = {"loss": mean_over_ranks(loss.detach()), **seen}
        # Lightning divides by `together`, also at the end of an epoch, where fewer batches are left
        left = self.accumulation.size(batch_idx)
        return loss if left == self.accumulation.together else loss * (self.accumulation.together / left)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        if len(batch["age_years"]):
            trunk = self.trunk(batch, step=0)  # the same views at every validation
        else:  # a last batch of fewer scans than ranks
            trunk = torch.empty((0, self.encoder.features), device=self.device)
        with self._full_precision():
            loss, seen = self.loss_of(trunk.float(), batch)
        self.validation.append({"loss": mean_over_ranks(loss), **seen})

    @contextmanager
    def _full_precision(self) -> Iterator[None]:
        with torch.autocast(self.device.type, enabled=False), exact_products():
            yield

    def validation_metrics(self) -> dict[str, float]:
        """Numbers of the validation that just ended, equal on all ranks and for any number of them."""
        return {"val/loss": float(torch.stack([part["loss"] for part in self.validation]).mean())}

    def on_validation_epoch_start(self) -> None:
        self.validation = []

    def configure_optimizers(self) -> Any:
        optimiser = build_optimiser(self.experiment.optim, self.parameters())
        factor = rate_factor(self.experiment.optim, self.steps_per_epoch, self.total_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
