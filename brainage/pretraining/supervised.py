"""Supervised pre-training: the baseline that predicts age with a linear head."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from brainage.config import Experiment
from brainage.imaging.contract import InputContract
from brainage.losses import supervised_loss
from brainage.losses.regularisers import conr_regulariser, order_regulariser
from brainage.pretraining.module import PretrainingModule


class SupervisedModule(PretrainingModule):
    """Encoder and linear head under L1, L2 or Huber loss, in years.

    The head's unit is the train set's standard deviation of age around its mean (see `fit_ages`) and it starts at 0, so
    that training starts from the mean predictor instead of spending its first epochs on finding the mean.
    """

    age_mean: Tensor
    age_sd: Tensor

    def __init__(self, experiment: Experiment, contract: InputContract, *, steps_per_epoch: int = 1) -> None:
        super().__init__(experiment, contract, steps_per_epoch=steps_per_epoch)
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
        subjects = len(batch["age_years"])
        predicted = self.head_output(trunk).squeeze(-1)  # [N]
        age_years = batch["age_years"].repeat_interleave(len(predicted) // subjects)
        z = trunk.detach().view(subjects, len(trunk) // subjects, -1)
        loss = self.loss(predicted, age_years) + self._regularised(trunk, age_years, predicted)
        return loss, {"z": z, "predicted_years": predicted.detach()}

    def _regularised(self, trunk: Tensor, age_years: Tensor, predicted: Tensor) -> Tensor | float:
        """The weighted regulariser of trunk features [N, F]."""
        config = self.experiment.loss
        if config.regulariser == "order":
            return config.regulariser_weight * order_regulariser(trunk, age_years)
        if config.regulariser == "conr":
            window = config.regulariser_window_years
            term = conr_regulariser(trunk, age_years, predicted, window_years=window, temperature=config.temperature)
            return config.regulariser_weight * term
        return 0.0

    def validation_metrics(self) -> dict[str, float]:
        metrics = super().validation_metrics()
        errors = []
        for part in self.validation:
            views = len(part["predicted_years"]) // len(part["age_years"])
            predicted = part["predicted_years"].view(-1, views).mean(dim=1)
            errors.append((predicted - part["age_years"]).abs())
        return metrics | {"val/mae_years": float(torch.cat(errors).mean())}
