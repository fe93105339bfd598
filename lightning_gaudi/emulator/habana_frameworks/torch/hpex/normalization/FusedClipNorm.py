"""Clip gradients by their total norm without the host waiting for it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.step_closures import mark_step_if_lazy

_EPSILON = 1e-6


class FusedClipNorm:
    """Clips gradients to a total 2-norm (bridge 1.19.0, ``FusedNormOperator``).

    Args:
        parameters: The parameters; the first one's dtype is that of the norm.
        max_norm: The greatest total norm.
    """

    def __init__(self, parameters: Iterable[Tensor], max_norm: float) -> None:
        first = next(iter(list(parameters)), None)
        self.dtype = torch.float32 if first is None else first.dtype
        self.max_norm_t = (torch.ones(1) * max_norm).to(self.dtype).to("hpu")
        self.norm_type = 2.0

    def clip_norm(self, parameters: Tensor | Iterable[Tensor]) -> Tensor:
        """Scale the gradients in place, where their total norm is greater than ``max_norm``.

        The factor is ``max_norm / (total_norm + 1e-6)``. Before and after it, the pending graph is
        marked.

        Args:
            parameters: One or more; those without a gradient do not count.

        Returns:
            The total norm before the scaling, of shape (1,) on the device; without any gradient a
            0 on the host.
        """
        mark_step_if_lazy()
        given = [parameters] if isinstance(parameters, Tensor) else parameters
        gradients = [p.grad for p in given if p.grad is not None]
        if not gradients:
            return torch.tensor(0.0)
        with torch.no_grad():
            norms = [torch.linalg.vector_norm(gradient).reshape(1) for gradient in gradients]
            total_norm: Tensor = torch.linalg.vector_norm(torch.cat(norms)).reshape(1)
            factor = torch.where(
                total_norm > self.max_norm_t,
                self.max_norm_t / (total_norm + _EPSILON),
                torch.ones_like(total_norm),
            )
            for gradient in gradients:
                gradient.mul_(factor)
        mark_step_if_lazy()
        return total_norm


__all__ = ["FusedClipNorm"]
__getattr__ = name_missing("habana_frameworks.torch.hpex.normalization.FusedClipNorm")
