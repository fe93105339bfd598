"""What makes two calls the same graph.

A graph fixes everything but the values of its input tensors. So the key holds all the rest: the
structure of the arguments and their constants; shape, dtype and device of every tensor, and its
strides unless it is contiguous; which arguments are one and the same tensor or
share memory; the value of a small
CPU tensor, which a graph would freeze; and the modes that change what ops do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.graphs.structure import UnsupportedValueError, flatten

Key = tuple[Any, ...]


def key_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Key, list[Tensor]]:
    """The key of a call, and its device tensors in order.

    Returns:
        A hashable key, and the tensors that are inputs of the graph: each object once.

    Raises:
        UnsupportedValueError: An argument is an object that may hold tensors or change, or a CPU
            tensor of more than one element.
    """
    found: list[Tensor] = []
    structure = flatten((args, kwargs), found)
    inputs: list[Tensor] = []
    places: dict[int, int] = {}
    descriptions: list[Any] = []
    for tensor in found:
        place = places.get(id(tensor))
        if place is not None:
            descriptions.append(place)
            continue
        device = tensor.device
        if device.type == "cpu":
            descriptions.append(_host_constant(tensor))
            continue
        places[id(tensor)] = len(inputs)
        inputs.append(tensor)
        descriptions.append(
            (
                tensor.shape,
                tensor.dtype,
                device,
                None if tensor.is_contiguous() else tensor.stride(),
            )
        )
    return (structure, tuple(descriptions), _sharing(inputs), _modes()), inputs


def _sharing(tensors: list[Tensor]) -> tuple[int, ...] | None:
    """Which tensors share a storage: for each the first one on the same; None if none do."""
    storages = [tensor.untyped_storage()._cdata for tensor in tensors]
    if len(set(storages)) == len(storages):
        return None
    return tuple(storages.index(storage) for storage in storages)


def _host_constant(tensor: Tensor) -> Any:
    if tensor.numel() > 1:
        raise UnsupportedValueError(tensor)
    return ("cpu", tensor.shape, tensor.dtype, repr(tensor.tolist()))


def _modes() -> tuple[Any, ...]:
    """Autocast and the default dtype. Grad mode is not here: a graph serves calls without grad."""
    autocast = torch.is_autocast_enabled("hpu")
    return (
        torch.get_autocast_dtype("hpu") if autocast else None,
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )
