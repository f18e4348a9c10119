"""Chunks of rows for memory's sake: what stays between them, and what backward may do."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from brainage.config import LossConfig
from brainage.losses import contrastive_loss
from brainage.losses.chunks import mean_over_chunks

from .test_contrastive import ring

ADDED_BYTES = """
import sys, torch
from brainage.config import LossConfig
from brainage.losses import contrastive_loss

def peak():  # of this program alone: getrusage would tell that of the process that started it
    return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

torch.set_num_threads(1)
chunks = int(sys.argv[1])
loss = contrastive_loss(LossConfig(name="exp", chunk_rows=64))
z, ages = torch.randn(32768, 1, 128, requires_grad=True), torch.rand(32768) * 60 + 20
before = peak()
loss(z, ages, rows=(0, 64 * chunks)).backward()
print(peak() - before)
"""


def test_each_chunk_is_computed_once_and_one_gradient_is_kept() -> None:
    seen, kept = [], []

    def part(z: torch.Tensor, first: int, last: int) -> torch.Tensor:
        seen.append((first, last))
        return z[first:last].exp().mean()

    z = torch.arange(7.0, requires_grad=True)
    mean = mean_over_chunks(part, z, (1, 7), 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        mean_over_chunks(part, z, (1, 7), 4)
    assert kept[-1] == z.shape
    (3 * mean).backward()
    assert seen == [(1, 5), (5, 7)] * 2
    expected = torch.cat([torch.zeros(1), z.detach()[1:].exp() / 2])
    torch.testing.assert_close(z.grad, expected)


def test_a_half_precision_embedding_gets_a_gradient_that_was_added_up_in_full_precision() -> None:
    z = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    tiny = 2.0**-9  # 1 + tiny is 1 in bf16
    parts = mean_over_chunks(lambda z, first, last: z[0] * (1.0 if first == 0 else tiny), z, (0, 257), 1)
    parts.backward()
    assert parts.dtype == torch.float32
    assert z.grad is not None
    assert z.grad.item() == pytest.approx((1 + 256 * tiny) / 257, rel=2**-8)


@pytest.mark.parametrize("name", ["exp", "rnc"])
def test_without_a_gradient_the_value_is_the_same(name: str) -> None:
    loss = contrastive_loss(LossConfig(name=name, chunk_rows=3))
    z, ages = ring(7).requires_grad_(), torch.arange(7.0)
    with torch.no_grad():
        value = loss(z, ages)
    assert not value.requires_grad
    torch.testing.assert_close(value, loss(z, ages).detach())
    torch.testing.assert_close(value, loss(z.detach(), ages))
    with torch.inference_mode():
        torch.testing.assert_close(value, loss(z, ages))


def test_the_gradient_is_a_constant_of_which_no_derivative_can_be_taken() -> None:
    loss = contrastive_loss(LossConfig(name="exp", chunk_rows=2))
    z = ring(5).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z, torch.arange(5.0)), z, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_chunks() -> None:
    """The heap's blocks are used again; with checkpoints, whose graph lay between them, 32 chunks took 3 times 4's."""

    def added(chunks: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", ADDED_BYTES, str(chunks)], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert added(40) < 1.7 * added(8)
