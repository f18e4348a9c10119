"""How alike two ages are: kernels K(d) of the age distance d in years, as logarithms.

The logarithm is kept because K itself underflows: in float32 an rbf of sigma 2 is zero beyond 29 years, and the weights
of a person without a neighbour in age would be 0 / 0. A softmax of log K stays finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def log_rbf(distance_years: Tensor, sigma_years: float) -> Tensor:
    """log exp(-d^2 / (2 sigma^2)); K peaks at 1.

    >>> log_rbf(torch.tensor([0.0, 2.0]), sigma_years=2.0).tolist()
    [-0.0, -0.5]
    """
    return -0.5 * (distance_years / sigma_years).square()


def log_gaussian(distance_years: Tensor, sigma_years: float) -> Tensor:
    """The rbf divided by sqrt(2 pi) sigma, a density over years: K peaks at 0.3989 / sigma.

    A constant factor cancels wherever weights are divided by their sum (y-Aware), but not in L^exp, whose repulsion
    1 - K then never reaches 0: even two people of one age repel each other.

    >>> round(float(log_gaussian(torch.tensor(0.0), sigma_years=2.0).exp()), 4)
    0.1995
    """
    return log_rbf(distance_years, sigma_years) - math.log(math.sqrt(2 * math.pi) * sigma_years)


def log_cauchy(distance_years: Tensor, gamma: float) -> Tensor:
    """log 1 / (gamma d^2 + 1), gamma in 1/years^2; K peaks at 1 and has heavy tails.

    >>> round(float(log_cauchy(torch.tensor(3.0), gamma=1.0).exp()), 6)
    0.1
    """
    return -torch.log1p(gamma * distance_years.square())


KERNELS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "rbf": log_rbf,
    "gaussian": log_gaussian,
    "cauchy": log_cauchy,
}
