"""The same rows of the losses' reference table with 1, 2 and 3 processes: gradients of the parameters, not of z alone.

Every process holds the whole list of rows and its own part of each batch; one spawn serves all rows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from brainage.config import LossConfig
from brainage.encoders.sync_norm import GlobalBatchNorm, synchronise
from brainage.losses import contrastive_loss
from brainage.losses.names import CONTRASTIVE_NAMES
from brainage.losses.regularisers import site_dependence
from brainage.pretraining.gather import gather_batch, mean_over_ranks
from tests.pretraining.groups import together

AGES = torch.tensor([21.0, 22.5, 22.5, 40.0, 41.9, 63.0, 85.25, 30.0], dtype=torch.float64)
PERSON = torch.tensor([7, 7, 3, 3, 7, 9, 1, 2])
SITE = torch.tensor([0, 0, 1, 1, 0, 2, 1, 0])
PARTS = {1: {"equal": [8]}, 2: {"equal": [4, 4], "unequal": [7, 1], "empty": [8, 0]}, 3: {"unequal": [4, 1, 3]}}
NORMS = ("none", "group", "sync")
VIEWS = 2


def network(norm: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(5)
    middle = {"none": nn.Identity(), "group": nn.GroupNorm(2, 6), "sync": nn.BatchNorm1d(6)}[norm]
    net = nn.Sequential(nn.Linear(5, 6), middle, nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    return synchronise(net, torch.device("cpu"))


def samples(dtype: torch.dtype) -> Tensor:
    return torch.randn(8, VIEWS, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def step(config: LossConfig, norm: str, dtype: torch.dtype, part: slice) -> tuple[Tensor, list[Tensor]]:
    """Global loss and this rank's gradients, which DDP would average."""
    net, x = network(norm, dtype), samples(dtype)[part]
    z = net(x.reshape(-1, 5)).view(len(x), VIEWS, 3)
    batch = gather_batch(z, AGES[part].to(dtype), PERSON[part], SITE[part])
    if len(x):
        loss = contrastive_loss(config)(
            batch.z, batch.age_years, batch.subject, site=batch.site, progress=0.5, rows=batch.rows
        )
        rows = (batch.rows[0] * VIEWS, batch.rows[1] * VIEWS)
        loss = loss + config.site_penalty * site_dependence(
            batch.z.flatten(0, 1), batch.site.repeat_interleave(VIEWS), rows=rows
        )
        loss = loss * batch.share
    else:
        loss = batch.z.sum() * 0.0  # takes part in the exchange of gradients
    loss.backward()
    return mean_over_ranks(loss.detach()), [p.grad for p in net.parameters()]


def configurations() -> list[tuple[LossConfig, str, torch.dtype]]:
    plain = [LossConfig(name=name, temperature=2.0 if name == "rnc" else 0.2) for name in CONTRASTIVE_NAMES]
    more = [
        LossConfig(name="exp", similarity="shifted"),
        LossConfig(name="yaware", normalise="column"),
        LossConfig(name="thr", as_published_code=True),
        LossConfig(name="exp", same_subject="positive", site_repulsion=3.0, repel_nearest=2, age_balance=1.0),
        LossConfig(name="supcon", chunk_rows=2, site_penalty=2.0),
        LossConfig(name="rnc", temperature=2.0, chunk_rows=1, age_balance=0.5),
    ]
    rows = [(config, "sync", torch.float64) for config in [*plain, *more]]
    rows += [(LossConfig(), norm, torch.float64) for norm in NORMS]
    return rows + [(config, "sync", torch.float32) for config in plain]


def every_step(rank: int, ranks: int, sizes: list[int]) -> list[tuple[Tensor, list[Tensor]]]:
    start = sum(sizes[:rank])
    part = slice(start, start + sizes[rank])
    return [step(config, norm, dtype, part) for config, norm, dtype in configurations()]


@pytest.mark.parametrize(
    ("ranks", "division"), [(ranks, division) for ranks, divisions in PARTS.items() for division in divisions]
)
def test_gradients_of_several_processes_are_those_of_one(ranks: int, division: str) -> None:
    found = together(ranks, every_step, PARTS[ranks][division])
    for place, (config, norm, dtype) in enumerate(configurations()):
        value, expected = step(config, norm, dtype, slice(None))
        norm_of_all = torch.cat([g.flatten() for g in expected]).norm()
        averaged = [torch.stack(parts).mean(0) for parts in zip(*(rank[place][1] for rank in found), strict=True)]
        difference = torch.cat([(a - b).flatten() for a, b in zip(averaged, expected, strict=True)]).norm()
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4
        assert difference <= tolerance * norm_of_all, (config, norm, dtype, float(difference / norm_of_all))
        for rank in found:
            torch.testing.assert_close(rank[place][0], value, rtol=tolerance, atol=tolerance)


def norm_step(rank: int, ranks: int, sizes: list[int]) -> dict[str, Any]:
    layer = GlobalBatchNorm(3).double()
    x = torch.randn(9, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 1e3
    start = sum(sizes[:rank])
    mine = x[start : start + sizes[rank]].requires_grad_()
    for _ in range(3):
        layer(mine).square().mul(torch.arange(start, start + len(mine)).view(-1, 1, 1, 1, 1)).sum().backward()
    return {"output": layer(mine).detach(), "input_grad": mine.grad, **layer.state_dict()}


def test_a_norm_over_all_ranks_equals_batch_norm_of_the_whole_batch() -> None:
    sizes = [4, 0, 5]
    found = together(3, norm_step, sizes)
    layer = nn.BatchNorm3d(3).double()
    x = torch.randn(9, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 1e3
    x.requires_grad_()
    for _ in range(3):
        layer(x).square().mul(torch.arange(9).view(-1, 1, 1, 1, 1)).sum().backward()
    torch.testing.assert_close(torch.cat([rank["output"] for rank in found]), layer(x).detach())
    torch.testing.assert_close(torch.cat([rank["input_grad"] for rank in found]), x.grad, rtol=1e-6, atol=1e-7)
    for name, tensor in layer.state_dict().items():
        for rank in found:
            torch.testing.assert_close(rank[name], tensor)


def per_rank_norm(rank: int, ranks: int) -> list[Tensor]:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = samples(torch.float64)[rank * 4 : rank * 4 + 4]
    z = net(x.reshape(-1, 5)).view(4, VIEWS, -1)
    part = slice(rank * 4, rank * 4 + 4)
    batch = gather_batch(z, AGES[part], PERSON[part])
    (contrastive_loss(LossConfig())(batch.z, batch.age_years, batch.subject, rows=batch.rows) * batch.share).backward()
    return [p.grad for p in net.parameters()]


def test_per_rank_norm_equals_one_process_that_norms_the_same_groups() -> None:
    found = together(2, per_rank_norm)
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    z = torch.cat([net(part.reshape(-1, 5)) for part in samples(torch.float64).split(4)]).view(8, VIEWS, -1)
    contrastive_loss(LossConfig())(z, AGES, PERSON).backward()
    for place, parameter in enumerate(net.parameters()):
        averaged = torch.stack([rank[place] for rank in found]).mean(0)
        torch.testing.assert_close(averaged, parameter.grad, rtol=1e-9, atol=1e-12)
