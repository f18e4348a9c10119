"""Every contrastive loss against its definition: one table of rows (tests/losses/reference.py) drives the checks."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from brainage.errors import ConfigError
from brainage.losses import CONTRASTIVE
from brainage.losses.names import CONTRASTIVE_NAMES

from . import reference
from .reference import ROWS, Row

SIMILARITIES = ("cosine", "shifted")


def keys_of(row: Row) -> dict[str, Any]:
    """The row's keywords that this loss knows."""
    known = inspect.signature(CONTRASTIVE[row.name]).parameters
    return {key: value for key, value in {**row.keys, **row.batch.keys}.items() if key in known}


def reference_keys_of(row: Row) -> dict[str, Any]:
    keys = keys_of(row)
    return {("kernel_name" if key == "kernel" else key): value for key, value in keys.items()}


def inputs_of(row: Row, seed: int = 0, dim: int = 3) -> tuple[Tensor, Tensor, Tensor | None]:
    """Un-normalised float64 embeddings, ages, persons."""
    batch = row.batch
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(len(batch.ages), batch.views, dim, generator=generator, dtype=torch.float64) * 3
    subject = None if batch.subject is None else torch.tensor(batch.subject)
    return z, torch.tensor(batch.ages, dtype=torch.float64), subject


def compute(row: Row, z: Tensor, age_years: Tensor, subject: Tensor | None) -> Tensor:
    return CONTRASTIVE[row.name](z, age_years, subject=subject, **keys_of(row))


def ring(n: int, views: int = 2, dim: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, views, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(name: str, z: Tensor, age_years: Tensor, subject: Tensor | None = None, **keys: Any) -> Tensor:
    z = z.detach().clone().requires_grad_()
    CONTRASTIVE[name](z, age_years, subject=subject, **keys).backward()
    assert z.grad is not None
    return z.grad


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_value_and_gradient_equal_the_definition(row: Row) -> None:
    z, age_years, subject = inputs_of(row)
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    arguments = (row.batch.ages,)
    expected = float(reference.loss(row.name, z.tolist(), *arguments, row.batch.subject, **reference_keys_of(row)))
    slope = reference.directional_derivative(
        row.name, z.tolist(), *arguments, direction.tolist(), row.batch.subject, **reference_keys_of(row)
    )
    z.requires_grad_()
    value = compute(row, z, age_years, subject)
    value.backward()
    assert z.grad is not None
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(expected, rel=1e-12, abs=1e-10)
    assert (z.grad * direction).sum().item() == pytest.approx(float(slope), rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("row", [row for row in ROWS if row.batch.label == "repeated people positive"], ids=str)
def test_every_component_of_the_gradient_equals_finite_differences(row: Row) -> None:
    z, age_years, subject = inputs_of(row)
    assert torch.autograd.gradcheck(lambda x: compute(row, x, age_years, subject), z.requires_grad_(), atol=1e-7)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", CONTRASTIVE_NAMES)
def test_random_batches_equal_the_definition(name: str, seed: int) -> None:
    draw = torch.Generator().manual_seed(100 + seed)

    def pick(options: tuple) -> Any:
        return options[int(torch.randint(len(options), (), generator=draw))]

    n, views = pick((1, 2, 5, 6)), pick((2, 3) if name == "infonce" else (1, 2, 3))
    ages = (torch.rand(n, generator=draw, dtype=torch.float64) * pick((0.5, 10.0, 90.0)) + 5).tolist()
    batch = reference.Batch(
        f"random {seed}",
        ages,
        views,
        torch.randint(4, (n,), generator=draw).tolist() if pick((True, False)) else None,
        {
            "temperature": pick((0.05, 0.1, 1.0)),
            "kernel": pick(reference.KERNELS),
            "sigma_years": pick((0.7, 2.0, 8.0)),
            "similarity": pick(SIMILARITIES),
            "same_subject": pick(("exclude", "positive")),
            "bin_years": pick((1.0, 2.0, 10.0)),
        },
    )
    row = Row(name, {}, batch)
    z, age_years, subject = inputs_of(row, seed=seed, dim=pick((1, 2, 5)))
    expected = float(reference.loss(name, z.tolist(), ages, batch.subject, **reference_keys_of(row)))
    assert compute(row, z, age_years, subject).item() == pytest.approx(expected, rel=1e-12, abs=1e-10)


@pytest.mark.parametrize("row", [row for row in ROWS if row.batch.label.startswith("repeated people")], ids=str)
def test_order_of_scans_and_of_views_and_the_origin_of_age_do_not_matter(row: Row) -> None:
    z, age_years, subject = inputs_of(row)
    value = compute(row, z, age_years, subject)
    order = torch.tensor([3, 6, 0, 2, 5, 1, 4])
    assert subject is not None
    torch.testing.assert_close(compute(row, z[order], age_years[order], subject[order]), value)
    torch.testing.assert_close(compute(row, z.flip(1), age_years, subject), value)
    torch.testing.assert_close(compute(row, z, age_years, 1000 - subject), value)  # ids are names, not numbers
    shift = 4.0 if row.name == "supcon" else 3.7  # bins of 2 years start at 0
    torch.testing.assert_close(compute(row, z, age_years + shift, subject), value)


@pytest.mark.parametrize("name", [name for name in CONTRASTIVE_NAMES if name != "rnc"])
def test_embeddings_are_normalised_inside(name: str) -> None:
    z, age_years = ring(5), torch.tensor([20.0, 21.0, 30.0, 50.0, 51.0])
    scale = torch.linspace(0.01, 90, 10, dtype=torch.float64).reshape(5, 2, 1)
    torch.testing.assert_close(CONTRASTIVE[name](z * scale, age_years), CONTRASTIVE[name](z, age_years))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "row",
    # what the published L^thr computes depends on the precision: see test_thr_as_published
    [r for r in ROWS if r.batch.keys.get("temperature", 0.01) == 0.01 and "as_published_code" not in r.keys],
    ids=str,
)
def test_low_precision_and_low_temperature_stay_finite_and_close_to_float64(row: Row, dtype: torch.dtype) -> None:
    row = row._replace(batch=row.batch._replace(keys={**row.batch.keys, "temperature": 0.01}))
    z, age_years, subject = inputs_of(row)
    z = z.to(dtype)
    leaf = z.clone().requires_grad_()
    value = compute(row, leaf, age_years.float(), subject)
    value.backward()
    assert leaf.grad is not None
    assert value.dtype == torch.float32
    assert leaf.grad.isfinite().all()
    exact = compute(row, z.double(), age_years, subject)
    assert value.item() == pytest.approx(exact.item(), rel=2e-5, abs=2e-4)


@pytest.mark.parametrize("name", CONTRASTIVE_NAMES)
def test_inside_bf16_autocast_the_loss_stays_float32(name: str) -> None:
    z, age_years = ring(6).float(), torch.tensor([20.0, 21.0, 30.0, 50.0, 51.0, 80.0])
    outside = CONTRASTIVE[name](z, age_years, temperature=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = CONTRASTIVE[name](z, age_years, temperature=0.01)
    assert inside.dtype == torch.float32
    assert inside.item() == outside.item()


@pytest.mark.parametrize("name", [name for name in CONTRASTIVE_NAMES if name != "rnc"])
def test_a_dead_embedding_gets_no_gradient_and_a_nan_one_reaches_the_loss(name: str) -> None:
    z, age_years = ring(4).float(), torch.tensor([20.0, 21.0, 30.0, 50.0])
    z[1, 0] = 0
    g = gradient(name, z, age_years)
    assert g.isfinite().all()
    assert not g[1, 0].any()
    assert g[0].any()
    z[2, 1] = math.nan
    assert CONTRASTIVE[name](z, age_years).isnan()


@pytest.mark.parametrize("name", ["exp", "yaware", "supcon"])
def test_an_anchor_without_partner_contributes_zero_to_a_mean_over_all(name: str) -> None:
    z = ring(1, views=1).requires_grad_()
    value = CONTRASTIVE[name](z, torch.tensor([50.0]))
    value.backward()
    assert value.item() == 0
    assert z.grad is not None
    assert not z.grad.any()
    # two people, one of them scanned twice, one view, all on one point: every anchor's loss is log(columns)
    ages, person = torch.full((3,), 50.0), torch.tensor([4, 4, 8])
    point = torch.ones(3, 1, 2, dtype=torch.float64)
    softmax = {"exp": {"similarity": "shifted"}}.get(name, {})
    expected = math.log(2) / 3  # the scanned-twice see one column each, log 1 = 0; the other sees two
    assert CONTRASTIVE[name](point, ages, subject=person, **softmax).item() == pytest.approx(expected)


def test_an_isolated_age_is_drawn_to_the_nearest_and_not_to_nan() -> None:
    z, age_years = ring(3, views=1).float(), torch.tensor([6.0, 86.0, 89.0])  # weights e-800 and e-861 underflow
    assert CONTRASTIVE["yaware"](z, age_years).isfinite()
    g = gradient("exp", z, age_years, sigma_years=0.5)
    assert g.isfinite().all()
    assert g[0].any()


def test_supcon_bins_start_at_zero_and_hold_their_lower_edge() -> None:
    z = ring(2, views=1)
    assert CONTRASTIVE["supcon"](z, torch.tensor([39.9, 40.0])).item() == 0  # two bins, no positive
    near, same = ring(3, views=1), [torch.tensor([40.0, 41.9, 70.0]), torch.tensor([40.0, 42.0, 70.0])]
    assert CONTRASTIVE["supcon"](near, same[0]).item() > 0
    assert CONTRASTIVE["supcon"](near, same[1]).item() == 0
    assert CONTRASTIVE["supcon"](near, same[1], bin_years=5.0).item() > 0


def test_infonce_ignores_ages_and_refuses_a_single_view() -> None:
    z = ring(3)
    values = [CONTRASTIVE["infonce"](z, torch.tensor(ages)).item() for ages in ([20.0, 30.0, 40.0], [50.0, 50.0, 1.0])]
    assert values[0] == values[1]
    with pytest.raises(ConfigError, match=r"augment\.views of 2 or more"):
        CONTRASTIVE["infonce"](z[:, :1], torch.tensor([20.0, 30.0, 40.0]))


@pytest.mark.parametrize("name", CONTRASTIVE_NAMES)
def test_a_batch_of_one_person_is_the_mean_of_its_scans_unless_they_are_positives(name: str) -> None:
    z, age_years, person = ring(3), torch.tensor([20.0, 20.5, 33.0]), torch.tensor([6, 6, 6])
    alone = torch.stack([CONTRASTIVE[name](z[n : n + 1], age_years[n : n + 1]) for n in range(3)]).mean()
    torch.testing.assert_close(CONTRASTIVE[name](z, age_years, subject=person), alone)
    if name != "thr":  # all of one age: nobody lies beyond anybody
        assert not torch.isclose(CONTRASTIVE[name](z, age_years, subject=person, same_subject="positive"), alone)
    assert not torch.isclose(CONTRASTIVE[name](z, age_years), alone)


def test_cosine_and_shifted_point_elsewhere_on_clustered_ages() -> None:
    age_years = torch.tensor([20.0 + i % 4 for i in range(16)] + [70.0 + i % 4 for i in range(16)], dtype=torch.float64)
    z = ring(32)
    cosine, shifted = (gradient("exp", z, age_years, similarity=form).flatten() for form in SIMILARITIES)
    assert torch.nn.functional.cosine_similarity(cosine, shifted, dim=0) < 0.8


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_with_all_ages_equal_cosine_and_shifted_differ_by_one_over_tau(temperature: float) -> None:
    z, age_years = ring(6), torch.full((6,), 44.0)
    values = [CONTRASTIVE["exp"](z, age_years, similarity=form, temperature=temperature) for form in SIMILARITIES]
    assert (values[1] - values[0]).item() == pytest.approx(1 / temperature, rel=1e-12)
    gradients = [gradient("exp", z, age_years, similarity=form, temperature=temperature) for form in SIMILARITIES]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gaussian_equals_rbf_for_yaware_and_differs_for_exp() -> None:
    z, age_years = ring(6), torch.tensor([20.0, 21.0, 22.0, 40.0, 41.0, 60.0], dtype=torch.float64)
    by_kernel = [CONTRASTIVE["yaware"](z, age_years, kernel=kernel) for kernel in ("rbf", "gaussian")]
    torch.testing.assert_close(by_kernel[0], by_kernel[1])
    by_kernel = [CONTRASTIVE["exp"](z, age_years, kernel=kernel) for kernel in ("rbf", "gaussian")]
    assert abs(by_kernel[0] - by_kernel[1]) > 0.1
    with pytest.raises(ConfigError, match="peaks above 1"):
        CONTRASTIVE["exp"](z, age_years, kernel="gaussian", sigma_years=0.3)


@pytest.mark.parametrize("name", CONTRASTIVE_NAMES)
def test_nothing_is_read_back_to_the_host(name: str) -> None:
    with FakeTensorMode():  # tensors without values: `.item()`, `if tensor`, data-dependent shapes raise
        z = torch.empty(5, 2, 4, requires_grad=True)
        CONTRASTIVE[name](z, torch.empty(5), subject=torch.empty(5, dtype=torch.int64)).backward()
    assert z.grad is not None
    assert z.grad.shape == z.shape


@pytest.mark.parametrize("name", CONTRASTIVE_NAMES)
def test_no_tensor_is_larger_than_a_block_of_pairs(name: str) -> None:
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, Tensor))
            return out

    with Watch():
        CONTRASTIVE[name](ring(10).requires_grad_(), torch.arange(10.0)).backward()
    assert max(sizes) == 20 * 20
