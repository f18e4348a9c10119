"""The global batch: what the embeddings of all ranks are, with gradients that flow back to where they came from.

Legend: W ranks, n scans of this rank, N of all, V views, D embedding.

Ranks exchange embeddings, ages, sites and persons, never images. Each rank then computes the loss of its own anchors
against all columns and returns n W / N of their mean. The gradient of a gathered embedding is the sum of what all ranks
say of it; DDP's mean over ranks of the parameters' gradients divides by W: what comes out is the gradient of the mean
over all anchors, as one process with the whole batch would have it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class GlobalBatch(NamedTuple):
    """All ranks' scans in the order of ranks; `rows` are this rank's own."""

    z: Tensor  # [N, ...]
    age_years: Tensor  # [N]
    subject: Tensor  # [N] int64
    site: Tensor | None  # [N] int64
    rows: tuple[int, int]

    @property
    def share(self) -> float:
        """n W / N: what the mean over this rank's anchors is multiplied by, so that DDP's mean is the global mean."""
        first, last = self.rows
        return (last - first) * ranks() / len(self.z)


def ranks() -> int:
    """Processes that train together; 1 where there is one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_batch(z: Tensor, age_years: Tensor, subject: Tensor, site: Tensor | None = None) -> GlobalBatch:
    """The batch of all ranks, from each rank's z [n, ...], age_years [n], subject [n], site [n]; n may differ, even 0.

    One rank gets its own tensors back. Ages and ids travel as float64, which is exact for them (ids below 2^53).
    """
    if ranks() == 1:
        return GlobalBatch(z, age_years, subject, site, (0, len(z)))
    sizes = _sizes(len(z), z.device)
    first = sum(sizes[: dist.get_rank()])
    columns = [age_years.double(), subject.double()] + ([] if site is None else [site.double()])
    facts = _gather(torch.stack(columns, dim=1), sizes)
    return GlobalBatch(
        z=_GatherRows.apply(z, sizes),
        age_years=facts[:, 0].to(age_years.dtype),
        subject=facts[:, 1].long(),
        site=None if site is None else facts[:, 2].long(),
        rows=(first, first + len(z)),
    )


def from_first(value: Tensor) -> None:
    """Fill `value` with the first rank's, in place."""
    if ranks() > 1:
        dist.broadcast(value, src=0)


def own_part(batch: GlobalBatch, mean: Callable[[], Tensor]) -> Tensor:
    """This rank's part of a loss: `mean()` over its own rows times its share; 0 where it has none.

    The 0 hangs on the gathered tensor, or the backward passes of the other ranks would wait for this one.
    """
    return mean() * batch.share if batch.rows[0] < batch.rows[1] else batch.z.sum() * 0.0


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a detached value over the ranks, on each of them."""
    if ranks() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a detached value over the ranks, on each of them: the global loss out of the parts that DDP averages."""
    return sum_over_ranks(value) / ranks()


class _GatherRows(torch.autograd.Function):
    """Concatenates every rank's rows; backward, the ranks' gradients are summed and each takes its own rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes  # type: ignore[attr-defined]
        return _gather(x, sizes)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        sizes: list[int] = ctx.sizes  # type: ignore[attr-defined]
        first = sum(sizes[: dist.get_rank()])
        return total[first : first + sizes[dist.get_rank()]], None


def _sizes(n: int, device: torch.device) -> list[int]:
    """Rows of each rank. They shape the tensors that follow, so that the host needs them: exchanged between hosts where
    the group can, since reading a value back from a device waits for all its work."""
    mine = torch.tensor([n], device="cpu" if "gloo" in dist.get_backend_config() else device)
    every = [torch.empty_like(mine) for _ in range(ranks())]
    dist.all_gather(every, mine)
    return torch.cat(every).tolist()


def _gather(x: Tensor, sizes: list[int]) -> Tensor:
    """Rows of all ranks; padded to the most rows: collectives of unequal shapes abort (gloo) or hang (NCCL)."""
    padded = x.new_zeros((max(sizes), *x.shape[1:]))
    padded[: len(x)] = x
    every = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(every, padded)
    return torch.cat([part[:size] for part, size in zip(every, sizes, strict=True)])
