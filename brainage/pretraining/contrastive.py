"""Contrastive pre-training: a trunk, a projection head, and a loss that compares ages across the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from brainage.config import Experiment
from brainage.encoders import build_head
from brainage.imaging.contract import InputContract
from brainage.losses import contrastive_loss
from brainage.losses.regularisers import site_dependence
from brainage.pretraining.module import PretrainingModule


class ContrastiveModule(PretrainingModule):
    """Encoder and projection head under one of the losses of `brainage.losses.CONTRASTIVE`."""

    def __init__(self, experiment: Experiment, contract: InputContract, *, steps_per_epoch: int = 1) -> None:
        super().__init__(experiment, contract, steps_per_epoch=steps_per_epoch)
        self.head = build_head(experiment.encoder, self.encoder.features)
        self.loss = contrastive_loss(experiment.loss)

    def head_output(self, trunk: Tensor) -> Tensor:
        """Embedding [N, D] as the loss compares it: of unit norm, but for Rank-N-Contrast."""
        z = self.head(trunk).float()
        return z if self.experiment.loss.name == "rnc" else torch.nn.functional.normalize(z, dim=-1)

    def loss_of(self, trunk: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        subjects = len(batch["age_years"])
        z = self.head_output(trunk).view(subjects, len(trunk) // subjects, -1)  # [B, V, D]
        self.loss_setting = {"site": batch.get("site"), "progress": self.global_step / max(self.total_steps, 1)}
        loss = self.loss(z, batch["age_years"], batch["subject"], **self.loss_setting)
        penalty = self.experiment.loss.site_penalty
        if penalty:  # 0 for a collapsed embedding, so that the health watch needs not know of it
            loss = loss + penalty * site_dependence(z.flatten(0, 1), batch["site"].repeat_interleave(z.shape[1]))
        return loss, {"z": z.detach()}
