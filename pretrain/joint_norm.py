"""Batch normalisation over the joint batch of several processes, for devices that torch.nn.SyncBatchNorm does not know."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["JointBatchNorm", "synchronise_norms"]


class _SumOverProcesses(torch.autograd.Function):
    """y = the sum of x over all processes; as each process uses y, the gradient of x is a sum too."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Tensor:
        total: Tensor = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class JointBatchNorm(_BatchNorm):
    """Batch normalisation whose mean and variance are those of equal batches on all processes together.

    Two sums, first for the mean and then for the squared distances from it, lose less than sums of squares do.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (torch's name)
        if input.ndim < 2:
            raise ValueError(f"input of {input.ndim} dimensions: must have at least 2; pass (n, channels, ...)")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise (n, channels, ...)."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.float()
        over = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _sum(x.sum(over)) / count
        centred = x - mean.view(shape)
        variance = _sum(centred.square().sum(over)) / count
        self._move_statistics(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _move_statistics(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - share).add_(mean, alpha=share)
        self.running_var.mul_(1 - share).add_(variance, alpha=share)


def _sum(x: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(x)
    return total


def synchronise_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch normalisation by one over all processes; parameters, buffers and their names stay.

    torch.nn.SyncBatchNorm where it runs, on a GPU, and JointBatchNorm elsewhere.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    for name, child in module.named_children():
        setattr(module, name, synchronise_norms(child, device))
    return _joint(module) if isinstance(module, _BatchNorm) else module


def _joint(norm: _BatchNorm) -> JointBatchNorm:
    joint = JointBatchNorm(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    joint.weight, joint.bias = norm.weight, norm.bias
    joint.running_mean, joint.running_var = norm.running_mean, norm.running_var
    joint.num_batches_tracked = norm.num_batches_tracked
    joint.training = norm.training
    return joint
