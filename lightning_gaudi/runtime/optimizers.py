"""The Gaudi software's own optimizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_gaudi.runtime import loading


def fused_adamw(params: ParamsT, **settings: Any) -> Optimizer:
    """``habana_frameworks.torch.hpex.optimizers.FusedAdamW``: a group's parameters in one kernel.

    It adds ``eps`` after the bias correction of the second moment, where ``torch.optim.AdamW``
    adds it before (bridge 1.19.0, ``optimizer_kernels.cpp``): the first steps of parameters with
    very small gradients differ.

    Args:
        params: Parameters on the device, or groups of them.
        settings: ``lr``, ``betas``, ``eps``, ``weight_decay``, ``bias_correction``.
    """
    optimizer: Optimizer = loading.module("torch.hpex.optimizers").FusedAdamW(params, **settings)
    return optimizer


def is_fused(optimizer: Optimizer) -> bool:
    """Whether an optimizer is one of the Gaudi software's own."""
    return type(optimizer).__module__.startswith("habana_frameworks")


def is_fused_adamw(optimizer: Optimizer) -> bool:
    """Whether an optimizer is the Gaudi software's `FusedAdamW`. Loads the software."""
    return isinstance(optimizer, loading.module("torch.hpex.optimizers").FusedAdamW)


def clip_norm(params: Iterable[Tensor], max_norm: float) -> Tensor:
    """Clip gradients to a total 2-norm by ``hpex.normalization.FusedClipNorm``, in place.

    Nothing is read on the host.

    Args:
        params: The parameters; those without a gradient do not count.
        max_norm: The greatest total norm.

    Returns:
        The total norm before, of shape (1,).
    """
    params = list(params)
    fused = loading.module("torch.hpex.normalization").FusedClipNorm(params, max_norm)
    norm: Tensor = fused.clip_norm(params)
    return norm
