"""What makes two calls the same graph.

A graph fixes everything but the values of its input tensors. So the key holds all the rest: the
structure of the arguments, their constants and the tensors' Python types; shape, dtype and device
of every tensor, and its strides unless it is contiguous; which arguments are one and the same
tensor; the value of a small CPU tensor, which a graph would freeze; and the modes that change what
ops do. Whether different arguments share memory matters only to a graph that writes to them, and is
asked there.

It comes in two parts. The *family* (structure and modes) is cheap. The description of the tensors
is not, and a `tensor_check` of the family's latest graph mostly makes it unnecessary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gaudi.graphs.structure import UnsupportedValueError, flatten

Key = tuple[Any, ...]

# Types of which an instance is a tensor; others are added as they are met.
_tensor_types: set[type] = {Tensor, nn.Parameter}


def read_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Key, Sequence[Tensor]]:
    """The structure of a call, and its tensors in order.

    Returns:
        What is equal for two calls exactly if they differ in tensors of the same types only; and
        the tensors, the caller's own, on any device, as often as they occur.

    Raises:
        UnsupportedValueError: An argument is an object that may hold tensors or change.
    """
    values = (*args, *kwargs.values()) if kwargs else args
    types = tuple(map(type, values))
    if not _tensor_types.issuperset(types):
        if not all(isinstance(value, Tensor) for value in values):
            found: list[Tensor] = []
            return flatten((args, kwargs), found), found
        _tensor_types.update(types)
    return (types, len(args), *kwargs), values


def describe(tensors: Sequence[Tensor]) -> tuple[Key, list[Tensor]]:
    """What a graph fixes of tensors, and those of them that are its inputs.

    Returns:
        A hashable description; and the device tensors in order, each object once.

    Raises:
        UnsupportedValueError: One is a CPU tensor of more than one element.
    """
    inputs: list[Tensor] = []
    places: dict[int, int] = {}
    descriptions: list[Any] = []
    for tensor in tensors:
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
    return tuple(descriptions), inputs


def key_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Key, list[Tensor]]:
    """The whole key of a call, with which arguments share memory, and its device tensors in order.

    Raises:
        UnsupportedValueError: As from `read_call` and `describe`.
    """
    structure, tensors = read_call(args, kwargs)
    description, inputs = describe(tensors)
    return (structure, modes(), description, _sharing(inputs)), inputs


def modes() -> Key:
    """Autocast, default dtype, determinism. Not grad mode: a graph serves calls without grad."""
    autocast = torch.is_autocast_enabled("hpu")
    return (
        torch.get_autocast_dtype("hpu") if autocast else None,
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
    )


def storages_of(tensors: Iterable[Tensor]) -> set[int]:
    """The addresses of the tensors' storage objects (``data_ptr`` means little, CARD.md 11)."""
    return {tensor.untyped_storage()._cdata for tensor in tensors}


def share_memory(tensors: Sequence[Tensor]) -> bool:
    """Whether two of the tensors share a storage."""
    return len(storages_of(tensors)) < len(tensors)


def _sharing(tensors: Sequence[Tensor]) -> Key | None:
    """For each tensor the first one on the same storage; None where no two share one."""
    if not share_memory(tensors):
        return None
    storages = [tensor.untyped_storage()._cdata for tensor in tensors]
    return tuple(map(storages.index, storages))


def constants_in(description: Key) -> Key:
    """What a description says of everything but input tensors."""
    return tuple(None if _is_input(entry) else entry for entry in description)


def inputs_in(description: Key) -> list[Any]:
    """What a description says of each input tensor: its shape, dtype, device and strides."""
    return [entry for entry in description if _is_input(entry)]


def text_of(description: Key) -> str:
    """Shapes and dtypes of the input tensors, for the reader: ``"2x16 int64, 2x16 bool"``."""
    return ", ".join(
        f"{'x'.join(map(str, shape)) or 'one'} {str(dtype).removeprefix('torch.')}"
        for shape, dtype, *_ in inputs_in(description)
    )


def _is_input(entry: Any) -> bool:
    return isinstance(entry, tuple) and entry[0] != "cpu"


def _host_constant(tensor: Tensor) -> Any:
    if tensor.numel() > 1:
        raise UnsupportedValueError(tensor)
    return ("cpu", tensor.shape, tensor.dtype, repr(tensor.tolist()))
