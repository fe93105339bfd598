"""Calls made up from shapes, to capture graphs before the first batch comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.graphs.structure import UnsupportedValueError, flatten, rebuild


def example_call(spec: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call that a specification stands for.

    Args:
        spec: A mapping of keyword arguments; a tuple or list of positional arguments; one tensor;
            or a tuple of whole numbers, the shape of one tensor of the default dtype. In arguments,
            nested ones too, a tensor stands for itself, moved to the device, one on ``"meta"`` for
            a tensor of its shape and dtype, and a `torch.Size` for one of that shape and the
            default dtype. Anything else is a constant.

    Returns:
        Positional and keyword arguments. Tensors made from shapes are zeros.

    Raises:
        ConfigurationError: It is something else.
    """
    if _is_shape(spec) or isinstance(spec, Tensor):
        return (_on_device(_tensors_in(spec)),), {}
    if isinstance(spec, Mapping) and all(isinstance(name, str) for name in spec):
        return (), {name: _argument(value) for name, value in spec.items()}
    if isinstance(spec, (tuple, list)):
        return tuple(map(_argument, spec)), {}
    raise ConfigurationError(
        "a warmup call must be a mapping of keyword arguments, a tuple of positional ones, a "
        f"tensor or a shape, but it is {spec!r}."
    )


def _is_shape(spec: Any) -> bool:
    return isinstance(spec, torch.Size) or (
        isinstance(spec, (tuple, list)) and bool(spec) and all(type(size) is int for size in spec)
    )


def _argument(value: Any) -> Any:
    value = _tensors_in(value) if isinstance(value, torch.Size) else value
    found: list[Tensor] = []
    try:
        flatten(value, found)
    except UnsupportedValueError as error:
        raise ConfigurationError(
            f"a warmup call has {error.what} among its arguments, and a call with such a one is "
            "never captured. Pass tensors, shapes and plain Python values."
        ) from None
    return rebuild(value, iter(map(_on_device, found)))


def _tensors_in(spec: Any) -> Tensor:
    return spec if isinstance(spec, Tensor) else torch.empty(tuple(spec), device="meta")


def _on_device(tensor: Tensor) -> Tensor:
    if tensor.device.type == "meta":
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device="hpu")
    return tensor.to("hpu")
