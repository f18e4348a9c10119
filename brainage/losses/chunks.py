"""A mean over anchors computed some rows at a time: of each chunk only its value and its part of the gradient stay.

The gradient is computed with the value, because a scalar's gradient is known up to the factor that backward brings.
Checkpointing would compute each chunk twice, and its graph of small objects, one for every chunk until backward, lies
between the large blocks of the C heap and keeps them from being used again (glibc: 18 MB a chunk at 32,768 embeddings).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Part = Callable[[Tensor, int, int], Tensor]


def mean_over_chunks(part: Part, z: Tensor, rows: tuple[int, int], chunk_rows: int) -> Tensor:
    """Mean of `part(z, first, last)`, itself a mean over these rows, over all `rows`; a scalar, float32 at least.

    z [N, ...] of any floating type gets the gradient of the whole, a constant to autograd: no second derivatives.

    >>> z = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> mean = mean_over_chunks(lambda z, first, last: z[first:last].square().mean(), z, (0, 3), chunk_rows=2)
    >>> mean.backward()
    >>> round(mean.item(), 4), z.grad.mul(3).tolist()  # (1 + 4 + 9) / 3, and 2 z
    (4.6667, [2.0, 4.0, 6.0])
    """
    z = z.to(torch.promote_types(z.dtype, torch.float32))  # parts of the gradient must not be added up in bf16
    if torch.is_grad_enabled() and z.requires_grad:
        return _Mean.apply(part, z, rows, chunk_rows)
    return torch.stack([share * part(z, *chunk) for share, chunk in _chunks(rows, chunk_rows)]).sum()


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Part, z: Tensor, rows: tuple[int, int], chunk_rows: int) -> Tensor:
        leaf, gradient, total = z.detach().requires_grad_(), torch.zeros_like(z), z.new_zeros(())
        for share, chunk in _chunks(rows, chunk_rows):
            with torch.enable_grad():
                value = share * part(leaf, *chunk)
            gradient += torch.autograd.grad(value, leaf)[0]
            total += value.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
        return None, ctx.saved_tensors[0] * grad, None, None


def _chunks(rows: tuple[int, int], size: int) -> list[tuple[float, tuple[int, int]]]:
    """(share of the rows, (first, last + 1)) of each chunk."""
    first, last = rows
    edges = [*range(first, last, size), last]
    return [((b - a) / (last - first), (a, b)) for a, b in itertools.pairwise(edges)]
