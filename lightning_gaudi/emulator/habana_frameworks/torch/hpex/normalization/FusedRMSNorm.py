"""Normalize by the root of the mean square."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator.missing import name_missing


class RmsNormBwdMode(Enum):
    """How a card computes the backward; the result is the same."""

    DEFAULT = 0
    STATIC_CASE_WIDTH_PARTITIONING = 1


class FusedRMSNorm(torch.autograd.Function):
    """``data_in * gamma / sqrt(mean(data_in ** 2, -1) + eps)`` with its gradients."""

    @staticmethod
    def apply(
        data_in: Tensor,
        gamma: Tensor,
        eps: float,
        use_stages: bool = True,
        bwd_mode: Any = 0,
        fast_math: bool = False,
    ) -> Tensor:
        """Normalize over the last dimension, computing in float32.

        Args:
            data_in: The input, of any shape (..., H).
            gamma: The weight, of shape (H,).
            eps: What is added to the mean square.
            use_stages: Which kernels a card's backward takes.
            bwd_mode: How a card partitions them, a `RmsNormBwdMode` or its value.
            fast_math: Whether a card may be less exact.

        Returns:
            The input's shape; its dtype, or float32 where the weight's is another (bridge 1.19.0,
            ``dynamo/_custom_op_meta_registrations.py``).
        """
        dtype = data_in.dtype if data_in.dtype == gamma.dtype else torch.float32
        x, weight = data_in.to(torch.float32), gamma.to(torch.float32)
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        return (x * inverse * weight).to(dtype)


__all__ = ["FusedRMSNorm", "RmsNormBwdMode"]
__getattr__ = name_missing("habana_frameworks.torch.hpex.normalization.FusedRMSNorm")
