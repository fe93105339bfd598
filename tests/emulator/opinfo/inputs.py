"""Copies of an op's sample inputs, on the CPU or on the emulated HPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def copies(value: Any, device: str, *, requires_grad: bool = True) -> Any:
    """Copy the tensors of a sample to a device; a device named in a sample is replaced too.

    Args:
        value: A tensor, a container of such, or anything else, which is handed on.
        device: ``"cpu"`` or ``"hpu"``.
        requires_grad: Whether a copy requires a gradient where its original does.
    """
    if isinstance(value, Tensor):
        copied = _copy(value.detach(), device)
        return copied.requires_grad_(value.requires_grad and requires_grad)
    if isinstance(value, torch.device) and value.type == "cpu":
        return torch.device(device)
    if type(value) is str and value == "cpu":
        return device
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(copies(v, device, requires_grad=requires_grad) for v in value))
    if type(value) in (list, tuple):
        return type(value)(copies(item, device, requires_grad=requires_grad) for item in value)
    if type(value) is dict:
        return {k: copies(v, device, requires_grad=requires_grad) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(copies(v, device) for v in (value.start, value.stop, value.step)))
    return value


def _copy(tensor: Tensor, device: str) -> Tensor:
    """A copy with the same strides, offset, and conjugate and negative bits."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return tensor.clone().to(device)
    if tensor.is_conj():
        return _copy(tensor.conj(), device).conj()
    if tensor.is_neg():
        return _copy(tensor._neg_view(), device)._neg_view()
    num_elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.is_contiguous() and num_elements == tensor.numel():
        return tensor.clone().to(device)
    storage = tensor.as_strided((num_elements,), (1,), 0)
    return (
        storage.clone()
        .to(device)
        .as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
    )


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a value, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, slice):
        return tensors_in((value.start, value.stop, value.step))
    return []
