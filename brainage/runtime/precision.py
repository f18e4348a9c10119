"""A guard against convolutions that are wrong in low precision. Wrong, not merely rounded: nothing else would tell.

Seen in the wild: bf16 conv3d of large inputs with cuDNN 9.8 to 9.10 (pytorch#163539), and bf16 conv3d on CPUs with AMX
where a stride leaves one voxel along the last axis (pytorch#169688). The first needs the size at which one trains, so
callers pass their batch shape on a GPU.

Shapes: N samples, C channels in, K channels out, X Y Z voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from brainage.errors import ConfigError
from brainage.runtime.console import warn

if TYPE_CHECKING:
    import torch

# Relative error of the norm. Rounding alone gives 0.002 in bf16 (8 bits of mantissa) and 0.0003 in fp16; the defects
# above give 0.1 and more.
TOLERANCE = 0.02
SMALL_BLOCK = (2, 8, 20, 20, 20)
LAST_VOXEL_BLOCK = (2, 16, 5, 6, 2)  # with stride 2, one voxel is left along the last axis


def set_tf32(allowed: bool, device: torch.device) -> None:
    """Say whether fp32 products of matrices and convolutions may be rounded to TF32, in this process.

    Both are set, either way: torch's own choice is to round convolutions and not matrices. TF32 has the range of fp32
    and 10 bits of mantissa; only NVIDIA GPUs since Ampere have it, so that it changes nothing on a CPU, which is said.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    if allowed and device.type != "cuda":
        warn(f"trainer.tf32=true: no effect on {device.type}, which computes in full fp32")


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products in full fp32 within, whatever `set_tf32` allowed: a similarity that is divided by a temperature
    of 0.1 would carry ten times TF32's error of 1e-3."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def guard_precision(precision: str, device: torch.device, shape: tuple[int, ...] = SMALL_BLOCK) -> None:
    """Refuse to train in a precision whose convolutions are wrong on this device.

    `shape` [N, C, X, Y, Z]: input of the block; on a GPU pass the size of the training batch. Call it after the backend
    flags of training (TF32, cuDNN benchmark, deterministic) are set, since they choose the kernel. Raises ConfigError.
    """
    import torch

    if precision == "fp32":
        return
    if precision not in ("bf16", "fp16"):
        raise ConfigError(f"trainer.precision={precision}: expected fp32, bf16 or fp16")
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("trainer.precision=fp16: a CPU would train in bf16 instead; expected fp32 or bf16")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    for block, stride in ((shape, 1), (shape, 2), (LAST_VOXEL_BLOCK, 2)):
        for channels_last in (False, True):
            errors = conv_block_error(block, dtype, device, stride=stride, channels_last=channels_last)
            for name, error in errors.items():
                if not error <= TOLERANCE:  # also refuses NaN
                    raise ConfigError(
                        f"trainer.precision={precision}: the {name} of a conv3d block {list(block)}, stride {stride},"
                        f" on {device.type} with torch {torch.__version__} is off by {error:.3g} of its norm (rounding"
                        f" explains {TOLERANCE}); use trainer.precision=fp32 or another torch build"
                    )


def conv_block_error(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    stride: int = 1,
    channels_last: bool = False,
    features: int = 16,
) -> dict[str, float]:
    """Relative error of conv3d + ReLU in `dtype` against fp32, fed with the same rounded numbers.

    Gives `output` and `weight gradient`: ||low - fp32|| / ||fp32||, over the whole batch. The reference is computed one
    sample at a time, so that it needs little memory and no large-tensor kernel.
    """
    import torch
    import torch.nn.functional as F

    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, device=device, dtype=dtype)

    x = draw(*shape).contiguous(memory_format=layout)
    weight = (draw(features, shape[1], 3, 3, 3) / (27 * shape[1]) ** 0.5).contiguous(memory_format=layout)
    weight.requires_grad_()
    output = F.relu(F.conv3d(x, weight, stride=stride, padding=1))
    upstream = draw(*output.shape)
    output.backward(upstream)
    assert weight.grad is not None

    reference = weight.detach().float().requires_grad_()
    missed = total = 0.0
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # TF32 has as few bits as fp16: no reference
    try:
        for sample in range(shape[0]):
            expected = F.relu(F.conv3d(x[sample : sample + 1].float(), reference, stride=stride, padding=1))
            # The mask of the low-precision ReLU: an output rounded to zero has no gradient in either.
            mask = output[sample : sample + 1].detach() > 0
            expected.backward(upstream[sample : sample + 1].float() * mask)
            missed += float((output[sample].detach().float() - expected[0].detach()).square().sum())
            total += float(expected.detach().square().sum())
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    assert reference.grad is not None
    gradient_error = (weight.grad.float() - reference.grad).norm() / reference.grad.norm()
    return {"output": (missed / total) ** 0.5, "weight gradient": float(gradient_error)}
