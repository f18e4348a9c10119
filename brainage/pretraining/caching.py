"""Gradient caching: encode a batch in chunks that keep nothing, so that any contrastive batch fits on any device.

Each chunk is drawn, normalised and encoded; only its features stay. When their gradients are known each chunk is
encoded again and passed backward (Gao et al. 2021, arXiv 2101.06983; here by `torch.utils.checkpoint`, which leaves
Lightning's automatic optimisation as it is). Memory then depends on the chunk and not on the batch, but for the stored
samples themselves (half precision) and the features; a step costs one forward pass more. Gradients are those of the
whole batch with GroupNorm or none; BatchNorm sees a chunk (of every rank, where it is synchronised), and that is
another training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Batch = dict[str, Tensor]


def in_chunks(encode: Callable[[Batch], Tensor], batch: Batch, chunks: int, norms: list[nn.Module]) -> Tensor:
    """`encode` [B, ...] -> [B V, F] of each of so many parts of a batch, one after the other; nothing of them is kept.

    `norms` are the BatchNorm layers inside (see `batch_norms`): their running averages move once and not twice. Dropout
    draws the same numbers both times. Parts differ by one scan at most and may be empty.
    """
    size = len(batch["age_years"])
    edges = [size * part // chunks for part in range(chunks + 1)]
    parts = [{name: values[a:b] for name, values in batch.items()} for a, b in itertools.pairwise(edges)]

    def twice() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _standing_still(norms)

    return torch.cat([checkpoint(encode, part, use_reentrant=False, context_fn=twice) for part in parts])


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """The layers that keep running averages."""
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


@contextmanager
def _standing_still(norms: list[nn.Module]) -> Iterator[None]:
    """Running averages afterwards are what they were; switched off, a norm would keep other tensors than before."""
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    try:
        yield
    finally:
        with torch.no_grad():
            for norm, kept in zip(norms, before, strict=True):
                for name, buffer in norm.named_buffers():
                    buffer.copy_(kept[name])
