"""The steps of ``nn.SyncBatchNorm``, which PyTorch has for devices other than the CPU only.

The card has a kernel for each (``hpu_ops.tsv``); here each is spelled with ops on the device.
Channels are dimension 1. Statistics are float32 where the input is of a smaller type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator.patching import replace
from lightning_gaudi.emulator.tensor import HPUTensor


def _all_but_channels(tensor: Tensor) -> list[int]:
    return [dim for dim in range(tensor.dim()) if dim != 1]


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    """One value a channel, shaped so that it broadcasts over a batch."""
    return values.view(1, -1, *[1] * (like.dim() - 2))


def _widen(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _stats(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation of each channel of this process's batch."""
    variance, mean = torch.var_mean(_widen(input), _all_but_channels(input), correction=0)
    return mean, torch.rsqrt(variance + eps)


def _gather_stats_with_counts(
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same of all batches together; `mean` and `invstd` have a row for each process."""
    weights = counts.view(-1, 1).to(mean.dtype)
    total = weights.sum()
    mean_of_all = (mean * weights).sum(0) / total
    squares = invstd.pow(-2) - eps + (mean - mean_of_all).square()
    variance = (squares * weights).sum(0) / total
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(mean_of_all * momentum)
    if running_var is not None:
        running_var.mul_(1 - momentum).add_(variance * (total / (total - 1)) * momentum)
    return mean_of_all, torch.rsqrt(variance + eps)


def _elemt(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    eps: float,
) -> Tensor:
    """Normalize a batch."""
    out = (_widen(input) - _by_channel(mean, input)) * _by_channel(invstd, input)
    if weight is not None:
        out = out * _by_channel(weight, input)
    if bias is not None:
        out = out + _by_channel(bias, input)
    return out.to(input.dtype)


def _backward_reduce(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    input_g: bool,
    weight_g: bool,
    bias_g: bool,
) -> tuple[Tensor | None, ...]:
    """Sums that the gradients need: of the gradient, and of it times the centred input."""
    grad, dims = _widen(grad_out), _all_but_channels(input)
    sum_dy = grad.sum(dims)
    sum_dy_xmu = (grad * (_widen(input) - _by_channel(mean, input))).sum(dims)
    dtype = grad.dtype if weight is None else weight.dtype
    return (
        sum_dy if input_g else None,
        sum_dy_xmu if input_g else None,
        (sum_dy_xmu * invstd).to(dtype) if weight_g else None,
        sum_dy.to(dtype) if bias_g else None,
    )


def _backward_elemt(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    """The gradient of a batch, from sums over all of them; `count` has one number a process."""
    total = count.sum()
    slope = invstd.square() * sum_dy_xmu / total
    centred = _widen(input) - _by_channel(mean, input)
    grad = _widen(grad_out) - _by_channel(sum_dy / total, input)
    grad = grad - centred * _by_channel(slope, input)
    scale = invstd if weight is None else invstd * weight
    return (grad * _by_channel(scale, input)).to(input.dtype)


def _on_device(plain_function: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    def function(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        chosen = ours if type(tensor) is HPUTensor else plain_function
        return chosen(tensor, *args, **kwargs)

    return function


def attach() -> None:
    """Put these in place of PyTorch's functions; they serve plain tensors as before."""
    for name, ours in (
        ("stats", _stats),
        ("gather_stats_with_counts", _gather_stats_with_counts),
        ("elemt", _elemt),
        ("backward_reduce", _backward_reduce),
        ("backward_elemt", _backward_elemt),
    ):
        plain_function = getattr(torch, f"batch_norm_{name}")
        replace(torch, f"batch_norm_{name}", _on_device(plain_function, ours))
