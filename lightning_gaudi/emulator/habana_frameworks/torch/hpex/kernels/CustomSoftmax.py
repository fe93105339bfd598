"""Softmax in bfloat16, which a card may approximate."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_gaudi.emulator.missing import name_missing


class CustomSoftmax(torch.autograd.Function):
    """Softmax over the last dimension (docs.habana.ai, "hpex/kernels/CustomSoftmax")."""

    @staticmethod
    def apply(inp: Tensor, flavor: int) -> Tensor:
        """The softmax; exact here for every flavor.

        Args:
            inp: The input, in bfloat16.
            flavor: 0 exact; 1 and 2 approximate on a card, 2 without subtracting the maximum.

        Raises:
            RuntimeError: Another dtype.
            ValueError: Another flavor.
        """
        if inp.dtype != torch.bfloat16:
            raise RuntimeError(f"CustomSoftmax takes bfloat16 only, but the input is {inp.dtype}.")
        if flavor not in (0, 1, 2):
            raise ValueError(f"CustomSoftmax has the flavors 0, 1 and 2, but got {flavor!r}.")
        return torch.softmax(inp, dim=-1)


__all__ = ["CustomSoftmax"]
__getattr__ = name_missing("habana_frameworks.torch.hpex.kernels.CustomSoftmax")
