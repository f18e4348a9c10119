"""Losses between predicted and chronological age, in years, computed in float32 whatever the network's precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from brainage.config import LossConfig, nearest
from brainage.errors import ConfigError


def l1(predicted_years: Tensor, age_years: Tensor) -> Tensor:
    """Mean of |predicted - age|: the mean absolute error, in years.

    >>> l1(torch.tensor([40.0, 50.0]), torch.tensor([43.0, 49.0])).item()
    2.0
    """
    return F.l1_loss(*_paired(predicted_years, age_years))


def l2(predicted_years: Tensor, age_years: Tensor) -> Tensor:
    """Mean of (predicted - age)^2, in years^2.

    >>> l2(torch.tensor([40.0, 50.0]), torch.tensor([43.0, 49.0])).item()
    5.0
    """
    return F.mse_loss(*_paired(predicted_years, age_years))


def huber(predicted_years: Tensor, age_years: Tensor, *, delta_years: float = 1.0) -> Tensor:
    """Mean of e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2), e = predicted - age (Huber 1964).

    >>> huber(torch.tensor([40.0, 50.0]), torch.tensor([43.0, 49.0]), delta_years=2.0).item()  # (4 + 0.5) / 2
    2.25
    """
    if not delta_years > 0:
        raise ConfigError(f"loss.huber_delta_years={delta_years}: expected a number of years above 0")
    return F.huber_loss(*_paired(predicted_years, age_years), delta=delta_years)


SUPERVISED: dict[str, Callable[..., Tensor]] = {"l1": l1, "l2": l2, "huber": huber}


def supervised_loss(config: LossConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss named by `config.name`, called as `loss(predicted_years [N], age_years [N])` -> float32 scalar.

    Raises ConfigError for a name that is not in SUPERVISED.
    """
    if config.name not in SUPERVISED:
        raise ConfigError(f"loss.name={config.name}: not a supervised loss{nearest(config.name, list(SUPERVISED))}")
    function = SUPERVISED[config.name]
    values = {"delta_years": config.huber_delta_years} if config.name == "huber" else {}

    def loss(predicted_years: Tensor, age_years: Tensor) -> Tensor:
        return function(predicted_years, age_years, **values)

    return loss


def _paired(predicted_years: Tensor, age_years: Tensor) -> tuple[Tensor, Tensor]:
    # [N, 1] against [N] would broadcast to N x N pairs, train, and learn to predict the mean age
    if predicted_years.shape != age_years.shape:
        found = f"{list(predicted_years.shape)} and {list(age_years.shape)}"
        raise ValueError(f"predicted and chronological ages: expected equal shapes [N], found {found}")
    dtype = torch.promote_types(predicted_years.dtype, torch.float32)
    return predicted_years.to(dtype), age_years.to(dtype)
