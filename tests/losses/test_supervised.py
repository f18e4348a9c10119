"""Age regression losses against scikit-learn's metrics and the definition of Huber."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error

from brainage.config import LossConfig
from brainage.errors import ConfigError
from brainage.losses import SUPERVISED, supervised_loss
from brainage.losses.names import SUPERVISED_NAMES

AGE = torch.tensor([20.0, 35.5, 61.0, 80.0], dtype=torch.float64)
PREDICTED = torch.tensor([21.0, 35.5, 50.0, 80.3], dtype=torch.float64)


def test_l1_and_l2_are_the_mean_absolute_and_squared_errors() -> None:
    assert SUPERVISED["l1"](PREDICTED, AGE).item() == pytest.approx(mean_absolute_error(AGE, PREDICTED))
    assert SUPERVISED["l2"](PREDICTED, AGE).item() == pytest.approx(mean_squared_error(AGE, PREDICTED))


@pytest.mark.parametrize("delta_years", [0.5, 1.0, 20.0])
def test_huber_is_quadratic_below_delta_and_linear_above(delta_years: float) -> None:
    errors = [abs(p - a) for p, a in zip(PREDICTED.tolist(), AGE.tolist(), strict=True)]
    parts = [e * e / 2 if e <= delta_years else delta_years * (e - delta_years / 2) for e in errors]
    value = supervised_loss(LossConfig(name="huber", huber_delta_years=delta_years))(PREDICTED, AGE)
    assert value.item() == pytest.approx(sum(parts) / 4)


@pytest.mark.parametrize("name", SUPERVISED_NAMES)
def test_gradients_are_right_and_half_precision_is_averaged_in_float32(name: str) -> None:
    loss = supervised_loss(LossConfig(name=name))
    prediction = (PREDICTED + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, AGE), prediction)
    value = loss(PREDICTED.bfloat16(), AGE.float())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(PREDICTED.bfloat16().double(), AGE).item(), rel=1e-6)


def test_a_column_against_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected equal shapes \[N\], found \[4, 1\] and \[4\]"):
        SUPERVISED["l1"](PREDICTED[:, None], AGE)


def test_unknown_names_and_widths_are_refused() -> None:
    assert tuple(SUPERVISED) == SUPERVISED_NAMES
    with pytest.raises(ConfigError, match="did you mean 'huber'"):
        supervised_loss(LossConfig(name="hubr"))
    with pytest.raises(ConfigError, match="huber_delta_years=0"):
        SUPERVISED["huber"](PREDICTED, AGE, delta_years=0.0)
