"""BatchNorm over the batches of all ranks, also on a CPU, where torch's SyncBatchNorm has no implementation."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GlobalBatchNorm(_BatchNorm):
    """`nn.BatchNorm1d/3d` whose mean and variance are those of all ranks' samples together; same parameters and names.

    Any input [N, C, ...]; ranks may have different N, even 0. The mean is exchanged first and the variance around it
    second, so that a large mean does not eat the digits. Gradients flow through both exchanges.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected [N, C, ...], found {list(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        together = self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not together:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.transpose(0, 1).reshape(input.shape[1], -1)  # [C, values of a channel]
        count = _Sum.apply(x.new_full((1,), float(x.shape[1])))
        mean = _Sum.apply(x.sum(dim=1)) / count
        centred = x - mean[:, None]
        variance = _Sum.apply(centred.square().sum(dim=1)) / count
        self._track(mean.detach(), variance.detach(), count)
        shape = (1, -1, *(1 for _ in input.shape[2:]))
        scaled = (input - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        return scaled * self.weight.view(shape) + self.bias.view(shape) if self.affine else scaled

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * count / (count - 1).clamp_min(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class _Sum(torch.autograd.Function):
    """Sum over the ranks; the gradient of a sum is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with every BatchNorm replaced by one over all ranks: torch's own on CUDA, `GlobalBatchNorm` elsewhere.

    Parameters, buffers and their names stay, so that a checkpoint fits either form.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    if isinstance(module, _BatchNorm) and not isinstance(module, GlobalBatchNorm):
        replaced = GlobalBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        for tensor in [*module.parameters(), *module.buffers()][:1]:
            replaced.to(device=tensor.device, dtype=tensor.dtype)
        replaced.load_state_dict(module.state_dict())
        return replaced.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, synchronise(child, device))
    return module
