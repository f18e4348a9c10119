"""Supervised pre-training: the baseline that predicts age with a linear head."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from brainage.config import Experiment
from brainage.imaging.contract import InputContract
from brainage.losses import supervised_loss
from brainage.losses.regularisers import conr_regulariser, order_regulariser
from brainage.pretraining.gather import GlobalBatch, gather_batch, own_part
from brainage.pretraining.module import PretrainingModule


class SupervisedModule(PretrainingModule):
    """Encoder and linear head under L1, L2 or Huber loss, in years.

    The head's unit is the train set's standard deviation of age around its mean (see `fit_ages`) and it starts at 0, so
    that training starts from the mean predictor instead of spending its first epochs on finding the mean.
    """

    age_mean: Tensor
    age_sd: Tensor

    def __init__(self, experiment: Experiment, contract: InputContract, *, batches_per_epoch: int = 1) -> None:
        super().__init__(experiment, contract, batches_per_epoch=batches_per_epoch)
        self.head = nn.Linear(self.encoder.features, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.loss = supervised_loss(experiment.loss)
        self.register_buffer("age_mean", torch.zeros(()))
        self.register_buffer("age_sd", torch.ones(()))

    def fit_ages(self, age_years: np.ndarray) -> None:
        """Learn mean and standard deviation of the train set's ages."""
        self.age_mean.fill_(float(np.mean(age_years)))
        self.age_sd.fill_(max(float(np.std(age_years)), 1e-3))

    def head_output(self, trunk: Tensor) -> Tensor:
        """Predicted age in years [N, 1]."""
        return self.age_mean + self.age_sd * self.head(trunk)

    def loss_of(self, trunk: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        predicted = self.head_output(trunk).unflatten(0, (len(batch["age_years"]), self.experiment.augment.views))
        # Features of all ranks for the regularisers and the health watch, with gradients only where they are used.
        features = (trunk if self.experiment.loss.regulariser != "none" else trunk.detach()).unflatten(
            0, predicted.shape[:2]
        )
        everyone = gather_batch(torch.cat([features, predicted.detach()], dim=2), batch["age_years"], batch["subject"])
        age_years = batch["age_years"].repeat_interleave(predicted.shape[1])

        def mean() -> Tensor:
            return self.loss(predicted.flatten(), age_years) + self._regularised(everyone)

        z, everybody_predicted = everyone.z.detach().split([trunk.shape[1], 1], dim=2)
        seen = {"z": z, "age_years": everyone.age_years, "subject": everyone.subject}
        return own_part(everyone, mean), seen | {"predicted_years": everybody_predicted.flatten()}

    def _regularised(self, everyone: GlobalBatch) -> Tensor | float:
        """The weighted regulariser of the trunk features of this rank's rows among those of all ranks."""
        config, views = self.experiment.loss, everyone.z.shape[1]
        trunk, predicted = everyone.z.flatten(0, 1).split([everyone.z.shape[2] - 1, 1], dim=1)
        age_years = everyone.age_years.repeat_interleave(views)
        rows = (everyone.rows[0] * views, everyone.rows[1] * views)
        if config.regulariser == "order":
            return config.regulariser_weight * order_regulariser(trunk, age_years, rows=rows)
        if config.regulariser == "conr":
            window, tau = config.regulariser_window_years, config.temperature
            term = conr_regulariser(
                trunk, age_years, predicted.squeeze(1), window_years=window, temperature=tau, rows=rows
            )
            return config.regulariser_weight * term
        return 0.0

    def validation_metrics(self) -> dict[str, float]:
        errors = []
        for part in self.validation:  # of all ranks each
            predicted = part["predicted_years"].view(-1, self.experiment.augment.views).mean(dim=1)
            errors.append((predicted - part["age_years"]).abs())
        return super().validation_metrics() | {"val/mae_years": float(torch.cat(errors).mean())}
