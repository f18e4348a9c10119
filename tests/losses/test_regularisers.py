"""ORDER, ConR and the dependence on site against loops over pairs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from brainage.losses.regularisers import conr_regulariser, order_regulariser, site_dependence

AGES = torch.tensor([20.0, 20.6, 33.0, 34.0, 60.0, 61.5, 85.0], dtype=torch.float64)
PREDICTED = torch.tensor([21.0, 30.0, 21.5, 33.6, 33.0, 60.0, 61.0], dtype=torch.float64)
SITE = torch.tensor([0, 0, 1, 2, 1, 1, 0])


def features(n: int = 7, dim: int = 4) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2


def unit(f: Tensor) -> list[list[float]]:
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in f.tolist()]


def looped_order(f: Tensor, ages: Tensor) -> float:
    rows, years = unit(f), ages.tolist()
    pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
    gaps = [abs(years[i] - years[j]) for i, j in pairs]
    apart = [sum(abs(a - b) for a, b in zip(rows[i], rows[j], strict=True)) for i, j in pairs]
    return -sum((g - min(gaps)) / max(gaps) * d for g, d in zip(gaps, apart, strict=True)) / len(pairs)


def looped_conr(f: Tensor, ages: Tensor, predicted: Tensor, window: float, tau: float) -> float:
    rows, y, p, total = unit(f), ages.tolist(), predicted.tolist(), 0.0
    for i in range(len(rows)):
        s = [sum(a * b for a, b in zip(rows[i], row, strict=True)) / tau for row in rows]
        others = [j for j in range(len(rows)) if j != i]
        positive = [j for j in others if abs(y[i] - y[j]) <= window]
        negative = [j for j in others if abs(y[i] - y[j]) > window and abs(p[i] - p[j]) <= window]
        if positive and negative:
            below = sum(math.exp(s[j]) for j in positive)
            below += sum(math.exp(0.01 * abs(y[i] - y[j]) + s[j]) for j in negative)
            total -= sum(math.log(math.exp(s[j]) / below) for j in positive) / len(positive)
    return total / len(rows)


def looped_dependence(f: Tensor, site: Tensor) -> float:
    """Each site's squared distance of mean embeddings in the kernel's space, by expanding |mean_s - mean|^2."""
    rows, total = torch.tensor(unit(f), dtype=torch.float64), 0.0
    kernel = torch.exp(-(torch.cdist(rows, rows) ** 2) / 2)
    for one in set(site.tolist()):
        mine = site == one
        mmd2 = kernel[mine][:, mine].mean() - 2 * kernel[mine].mean() + kernel.mean()
        total += float(mine.double().mean() ** 2 * mmd2)
    return total


def test_order_equals_its_definition_and_its_gradient() -> None:
    f = features().requires_grad_()
    assert order_regulariser(f, AGES).item() == pytest.approx(looped_order(f.detach(), AGES), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: order_regulariser(x, AGES), f)


@pytest.mark.parametrize("window", [0.5, 1.0, 15.0])
def test_conr_equals_its_definition_and_its_gradient(window: float) -> None:
    f = features().requires_grad_()
    found = conr_regulariser(f, AGES, PREDICTED, window_years=window, temperature=0.3)
    assert found.item() == pytest.approx(looped_conr(f.detach(), AGES, PREDICTED, window, 0.3), rel=1e-12)
    assert (found.item() > 0) == (window > 0.5)
    assert torch.autograd.gradcheck(lambda x: conr_regulariser(x, AGES, PREDICTED, window_years=window), f)


def test_site_dependence_is_the_weighted_discrepancy_of_the_sites() -> None:
    z = features().requires_grad_()
    assert site_dependence(z, SITE).item() == pytest.approx(looped_dependence(z.detach(), SITE), rel=1e-10)
    assert torch.autograd.gradcheck(lambda x: site_dependence(x, SITE), z)
    assert site_dependence(z, torch.zeros(7)).item() == pytest.approx(0, abs=1e-12)
    assert site_dependence(torch.ones(7, 3), SITE).item() == pytest.approx(0, abs=1e-6)  # a collapsed embedding


@pytest.mark.parametrize(
    "term",
    [
        lambda f, rows: order_regulariser(f, AGES, rows=rows),
        lambda f, rows: conr_regulariser(f, AGES, PREDICTED, window_years=15.0, rows=rows),
        lambda f, rows: site_dependence(f, SITE, rows=rows),
    ],
)
def test_parts_of_the_rows_add_up_with_their_gradients(term) -> None:
    whole, parts = features().requires_grad_(), features().requires_grad_()
    term(whole, None).backward()
    total = sum(term(parts, rows) * (rows[1] - rows[0]) / 7 for rows in [(0, 3), (3, 4), (4, 7)])
    total.backward()
    torch.testing.assert_close(total.detach(), term(whole, None).detach())
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-10, atol=1e-14)


def test_odd_batches_give_zero_and_no_nan() -> None:
    one = features(1).requires_grad_()
    order_regulariser(one, AGES[:1]).backward()
    assert one.grad is not None
    assert not one.grad.any()
    same = torch.full((7,), 40.0, dtype=torch.float64)
    assert order_regulariser(features(), same).item() == 0
    assert conr_regulariser(features(), same, PREDICTED).item() == 0  # nobody is of another age
    dead = torch.zeros(7, 4, requires_grad=True)
    (order_regulariser(dead, AGES) + conr_regulariser(dead, AGES, PREDICTED) + site_dependence(dead, SITE)).backward()
    assert dead.grad is not None
    assert dead.grad.isfinite().all()
