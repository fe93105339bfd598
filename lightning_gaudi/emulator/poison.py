"""Make it show where something reads memory that a card has freed or never computed."""

from __future__ import annotations

import torch
from torch import Tensor


def storage_of(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """All of a tensor's storage as one flat plain tensor.

    Args:
        tensor: A plain CPU tensor; the result shares its memory and nothing else, so that writing
            to it is invisible to autograd and allowed for inference tensors too.
        dtype: What to take the memory for; what the tensor does by default.
    """
    storage = tensor.untyped_storage()
    with torch.inference_mode(False):
        flat = torch.empty(0, dtype=dtype or tensor.dtype)
        return flat.set_(storage, 0, (storage.nbytes() // flat.element_size(),))  # type: ignore[call-overload,no-any-return]


def fill(flat: Tensor) -> None:
    """Fill a plain tensor with what shows: NaN, for whole numbers the smallest, for bool True."""
    if flat.dtype is torch.bool:
        flat.fill_(True)
    elif flat.is_floating_point() or flat.is_complex():
        flat.fill_(float("nan"))
    else:
        info = torch.iinfo(flat.dtype)
        flat.fill_(info.min or info.max)
