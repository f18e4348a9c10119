"""Contrastive pre-training: a trunk, a projection head, and a loss that compares ages across the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from brainage.config import Experiment
from brainage.encoders import build_head
from brainage.imaging.contract import InputContract
from brainage.losses import contrastive_loss
from brainage.losses.regularisers import site_dependence
from brainage.pretraining.gather import GlobalBatch, gather_batch, own_part
from brainage.pretraining.module import PretrainingModule


class ContrastiveModule(PretrainingModule):
    """Encoder and projection head under one of the losses of `brainage.losses.CONTRASTIVE`."""

    def __init__(self, experiment: Experiment, contract: InputContract, *, batches_per_epoch: int = 1) -> None:
        super().__init__(experiment, contract, batches_per_epoch=batches_per_epoch)
        self.head = build_head(experiment.encoder, self.encoder.features)
        self.loss = contrastive_loss(experiment.loss)

    def head_output(self, trunk: Tensor) -> Tensor:
        """Embedding [N, D] as the loss compares it: of unit norm, but for Rank-N-Contrast."""
        z = self.head(trunk)
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        return z if self.experiment.loss.name == "rnc" else torch.nn.functional.normalize(z, dim=-1)

    def loss_of(self, trunk: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        z = self.head_output(trunk).unflatten(0, (len(batch["age_years"]), self.experiment.augment.views))  # [B, V, D]
        everyone = gather_batch(z, batch["age_years"], batch["subject"], batch.get("site"))
        self.loss_setting = {"site": everyone.site, "progress": self.global_step / max(self.total_steps, 1)}
        seen = {"z": everyone.z.detach(), "age_years": everyone.age_years, "subject": everyone.subject}
        return own_part(everyone, lambda: self._mean_over_rows(everyone)), seen

    def _mean_over_rows(self, everyone: GlobalBatch) -> Tensor:
        """The loss of this rank's own anchors against the scans of all ranks."""
        z, rows = everyone.z, everyone.rows
        loss = self.loss(z, everyone.age_years, everyone.subject, rows=rows, **self.loss_setting)
        penalty, views = self.experiment.loss.site_penalty, z.shape[1]
        if penalty:  # 0 for a collapsed embedding, so that the health watch needs not know of it
            assert everyone.site is not None
            samples = (rows[0] * views, rows[1] * views)
            loss = loss + penalty * site_dependence(
                z.flatten(0, 1), everyone.site.repeat_interleave(views), rows=samples
            )
        return loss
