"""From a configuration to a loss: what is handed over, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from brainage.config import LossConfig
from brainage.errors import ConfigError
from brainage.losses import CONTRASTIVE, contrastive_loss
from brainage.losses.names import CONTRASTIVE_NAMES


def test_the_binder_hands_over_exactly_the_keys_of_the_formula() -> None:
    z, age_years = torch.rand(5, 2, 4), torch.tensor([20.0, 21.0, 22.0, 40.0, 60.0])
    person = torch.tensor([1, 1, 2, 3, 4])
    values = {"temperature": 0.3, "kernel": "cauchy", "sigma_years": 0.5, "similarity": "shifted"}
    config = LossConfig(name="exp", same_subject="positive", bin_years=7.0, **values)
    expected = CONTRASTIVE["exp"](z, age_years, subject=person, same_subject="positive", **values)
    assert contrastive_loss(config)(z, age_years, person) == expected
    config.name = "supcon"
    expected = CONTRASTIVE["supcon"](z, age_years, bin_years=7.0, temperature=0.3, same_subject="positive")
    assert contrastive_loss(config)(z, age_years) == expected


def test_the_registry_holds_the_names_the_configuration_knows() -> None:
    assert tuple(CONTRASTIVE) == CONTRASTIVE_NAMES
    with pytest.raises(ConfigError, match="did you mean 'yaware'"):
        contrastive_loss(LossConfig(name="yawar"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"temperature": 0.0}, r"loss\.temperature=0\.0: expected a number above 0"),
        ({"sigma_years": -1.0}, r"loss\.sigma_years=-1\.0"),
        ({"kernel": "gausian"}, "did you mean 'gaussian'"),
        ({"similarity": "dot"}, r"loss\.similarity=dot: unknown; known: cosine, shifted"),
        ({"same_subject": "drop"}, r"loss\.same_subject=drop"),
    ],
)
def test_values_without_meaning_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CONTRASTIVE["exp"](torch.rand(3, 2, 4), torch.arange(3.0), **keys)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    for z, ages, person in [
        (torch.rand(3, 2, 4)[:, 0], 3, 3),
        (torch.rand(3, 2, 4), 4, 3),
        (torch.rand(3, 2, 4), 3, 6),
    ]:
        with pytest.raises(ValueError, match=r"expected shapes \[N, V, D\], \[N\], \[N\], found"):
            CONTRASTIVE["exp"](z, torch.zeros(ages), subject=torch.zeros(person))


def test_checking_a_loss_name_does_not_import_torch() -> None:
    code = "import sys, brainage.losses.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
