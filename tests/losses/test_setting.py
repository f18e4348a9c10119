"""Beyond the published formulas, parts of the rows, chunks of rows, and what the published L^thr code computes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from brainage.config import LossConfig
from brainage.errors import ConfigError
from brainage.losses import CONTRASTIVE, contrastive_loss
from brainage.losses.names import CONTRASTIVE_NAMES
from brainage.losses.pairs import Setting, make_pairs

from . import reference
from .reference import BEYOND, MIXED, ROWS, SITES, Row
from .test_contrastive import gradient, inputs_of, keys_of, ring


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("extras", BEYOND, ids=str)
@pytest.mark.parametrize("name", CONTRASTIVE_NAMES)
def test_what_goes_beyond_the_formulas_equals_its_definition(name: str, extras: dict, views: int) -> None:
    if name == "infonce" and views == 1:
        pytest.skip("InfoNCE needs two views")
    batch = reference.Batch("sites", MIXED, views, [7, 7, 3, 4, 5, 9, 1])
    row = Row(name, {}, batch)
    z, age_years, subject = inputs_of(row)
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    keys = {"temperature": 0.5, **extras, "site": SITES}
    expected = float(reference.loss(name, z.tolist(), MIXED, batch.subject, **keys))
    slope = float(reference.directional_derivative(name, z.tolist(), MIXED, direction.tolist(), batch.subject, **keys))
    setting = Setting(site=torch.tensor(SITES), **extras)
    value = CONTRASTIVE[name](z.requires_grad_(), age_years, subject=subject, temperature=0.5, setting=setting)
    value.backward()
    assert z.grad is not None
    assert value.item() == pytest.approx(expected, rel=1e-12, abs=1e-10)
    assert (z.grad * direction).sum().item() == pytest.approx(slope, rel=1e-9, abs=1e-10)
    plain = CONTRASTIVE[name](z, age_years, subject=subject, temperature=0.5)
    assert value.item() != pytest.approx(plain.item(), rel=1e-4), "it changes nothing"


@pytest.mark.parametrize("extras", [{}, *BEYOND], ids=str)
@pytest.mark.parametrize("row", [row for row in ROWS if row.batch.label == "repeated people exclude"], ids=str)
def test_parts_of_the_rows_add_up_to_the_whole_and_to_its_gradient(row: Row, extras: dict) -> None:
    z, age_years, subject = inputs_of(row)
    keys, site = keys_of(row), torch.tensor(SITES)
    leaves = [z.clone().requires_grad_(), z.clone().requires_grad_()]
    whole = CONTRASTIVE[row.name](leaves[0], age_years, subject=subject, setting=Setting(site=site, **extras), **keys)
    whole.backward()
    parts = [(0, 3), (3, 4), (4, 7)]
    for first, last in parts:
        setting = Setting(rows=(first, last), site=site, **extras)
        part = CONTRASTIVE[row.name](leaves[1], age_years, subject=subject, setting=setting, **keys)
        (part * (last - first) / 7).backward()
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CONTRASTIVE_NAMES)
def test_chunks_of_rows_change_neither_value_nor_gradient(name: str) -> None:
    z, age_years = ring(7), torch.tensor(MIXED, dtype=torch.float64)
    found = []
    for chunk in (0, 1, 3, 7, 100):
        leaf = z.clone().requires_grad_()
        config = LossConfig(name=name, chunk_rows=chunk, repel_nearest=3, site_repulsion=2.0)
        value = contrastive_loss(config)(leaf, age_years, site=torch.tensor(SITES), progress=0.3, rows=(1, 7))
        value.backward()
        found.append((value.detach(), leaf.grad))
    for value, grad in found[1:]:
        torch.testing.assert_close(value, found[0][0], rtol=1e-12, atol=0)
        torch.testing.assert_close(grad, found[0][1], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", CONTRASTIVE_NAMES)
def test_with_chunks_no_tensor_is_larger_than_a_chunk_of_rows(name: str) -> None:
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, Tensor))
            return out

    with Watch():
        loss = contrastive_loss(LossConfig(name=name, chunk_rows=2))
        loss(ring(30, dim=2).requires_grad_(), torch.arange(30.0)).backward()
    assert max(sizes) == 4 * 60


def test_the_kernel_width_anneals_in_equal_ratios() -> None:
    z, age_years = ring(7), torch.tensor(MIXED)
    annealed = contrastive_loss(LossConfig(name="exp", sigma_start_years=8.0, sigma_years=2.0))
    for progress, sigma_years in [(0.0, 8.0), (0.5, 4.0), (1.0, 2.0), (7.0, 2.0)]:
        expected = CONTRASTIVE["exp"](z, age_years, sigma_years=sigma_years)
        torch.testing.assert_close(annealed(z, age_years, progress=progress), expected)
    torch.testing.assert_close(annealed(z, age_years), CONTRASTIVE["exp"](z, age_years, sigma_years=2.0))


def test_a_column_that_does_not_repel_gets_its_gradient_from_attraction_alone() -> None:
    """At the end of training with one nearest scan, the furthest embedding is pushed by nobody."""
    z = torch.tensor([[[1.0, 0.0]], [[0.9, 0.1]], [[-1.0, 0.2]]], dtype=torch.float64)
    ages = torch.tensor([20.0, 60.0, 85.0], dtype=torch.float64)  # weights of other ages are below e-78
    near = gradient("yaware", z, ages, setting=Setting(repel_nearest=1), sigma_years=1.0)
    every = gradient("yaware", z, ages, sigma_years=1.0)
    # 85 is drawn by 60 and draws it, but 20, whose positive is 60, no longer pushes it
    assert not torch.allclose(near[2], every[2])


def test_sites_are_needed_where_they_are_to_repel() -> None:
    with pytest.raises(ValueError, match="site_repulsion: expected the site of every scan"):
        CONTRASTIVE["exp"](ring(3), torch.arange(3.0), setting=Setting(site_repulsion=2.0))
    setting = Setting(site_repulsion=0.0, site=torch.zeros(3))
    with pytest.raises(ConfigError, match=r"loss\.site_repulsion=0.0: expected a number above 0"):
        CONTRASTIVE["exp"](ring(3), torch.arange(3.0), setting=setting)


def test_rare_ages_count_as_much_as_common_ones() -> None:
    """Nine people of one age and one of another: with the power 1 both ages have half of the weight."""
    ages = torch.tensor([30.0] * 9 + [70.0], dtype=torch.float64)
    weight = make_pairs(ring(10, views=1), ages, None, "exclude", Setting(age_balance=1.0)).anchor_weight
    assert weight is not None
    assert weight.mean().item() == pytest.approx(1)
    assert weight[:9].sum().item() == pytest.approx(weight[9].item())


def published_thr(z: Tensor, age_years: Tensor, sigma_years: float, tau: float = 0.1) -> Tensor:
    """The published code's L^thr as its tensor of M^3, in the precision of z: one denominator an anchor, to which j is
    counted once for every k with w_jk < w_ji; all columns but the anchor itself attract by w_ik / sum_t w_it."""
    M = len(z) * z.shape[1]
    unit = torch.nn.functional.normalize(z.reshape(M, -1), dim=1)
    ages = age_years.to(z.dtype).repeat_interleave(z.shape[1])
    w = torch.exp(-((ages[:, None] - ages[None, :]) ** 2) / (2 * sigma_years**2))
    s = unit @ unit.T / tau
    others = 1 - torch.eye(M, dtype=z.dtype)
    counted = (w[None, :, :] < w[:, :, None]).to(z.dtype)  # [i, j, k]: w_jk < w_ij
    denominator = ((s.exp() * others)[:, :, None] * counted).sum(dim=(1, 2))
    attracted = (w * others * (s - denominator.log()[:, None])).sum(1) / (w * others).sum(1)
    return -attracted.mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thr_as_published_repeats_the_published_code_with_its_underflow(dtype: torch.dtype) -> None:
    z = ring(16).to(dtype)
    ages = torch.linspace(8, 85, 16, dtype=torch.float64).roll(5)  # distances whose float32 kernel is 0
    mine = CONTRASTIVE["thr"](z, ages.to(dtype), as_published_code=True)
    theirs = published_thr(z, ages, 2.0)
    assert mine.dtype == dtype
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-6)
    by_formula = gradient("thr", z, ages.to(dtype)).flatten()
    as_coded = gradient("thr", z, ages.to(dtype), as_published_code=True).flatten()
    assert torch.nn.functional.cosine_similarity(by_formula, as_coded, dim=0) < 0.97


def test_thr_is_finite_where_the_published_code_is_not() -> None:
    z, ages = ring(4).float(), torch.full((4,), 50.0)
    assert not math.isfinite(published_thr(z, ages, 2.0))
    assert CONTRASTIVE["thr"](z, ages, as_published_code=True).item() == 0
    assert CONTRASTIVE["thr"](z, ages).item() == 0


def test_rnc_and_thr_decide_by_exact_distances_where_the_kernel_underflows() -> None:
    """In float32 an rbf of 2 years is 0 for both 60 and 70 years apart; the further one must still repel."""
    z = torch.eye(3)[:, None].clone().requires_grad_()
    ages = torch.tensor([10.0, 70.0, 80.0])
    CONTRASTIVE["thr"](z, ages).backward()
    assert z.grad is not None
    assert z.grad[0].any()


def test_rnc_sees_lengths_and_equal_embeddings_have_a_finite_gradient() -> None:
    z, ages = ring(4), torch.tensor([20.0, 30.0, 40.0, 41.0])
    assert not torch.isclose(CONTRASTIVE["rnc"](2 * z, ages), CONTRASTIVE["rnc"](z, ages))
    torch.testing.assert_close(CONTRASTIVE["rnc"](2 * z, ages, temperature=4.0), CONTRASTIVE["rnc"](z, ages))
    assert gradient("rnc", torch.ones(4, 2, 8), ages).isfinite().all()
