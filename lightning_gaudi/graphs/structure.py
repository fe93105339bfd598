"""What a call is made of: its tensors, and everything around them.

`flatten` walks arguments or results once. It gathers the tensors in order and describes the rest by
a value that is hashable and compares as replay needs: container types, keys and constants by type
and value, so that 1, True and 1.0 differ. `rebuild` puts other tensors in the places of the first.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor

_CONSTANTS = frozenset(
    {
        int,
        bool,
        str,
        bytes,
        type(None),
        torch.dtype,
        torch.device,
        torch.layout,
        torch.memory_format,
        torch.Size,
        range,
        type,
    }
)


class UnsupportedValueError(Exception):
    """A value whose tensors cannot be exchanged, or that may change unnoticed.

    Args:
        value: The value.

    Attributes:
        what: What it is, in words.
    """

    def __init__(self, value: Any) -> None:
        self.what = (
            f"a tensor on {value.device} of shape {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else f"an object of type {type(value).__name__}"
        )
        super().__init__(self.what)


def flatten(value: Any, tensors: list[Tensor]) -> Any:
    """Describe a value and append its tensors, in order, to `tensors`.

    Args:
        value: Nested tuples, lists, dicts and other mappings, dataclasses, named tuples, tensors
            and constants.
        tensors: Where the tensors go; they are the value's own, not copies.

    Returns:
        A hashable description, equal for two values exactly if they differ only in tensors of the
        same types.

    Raises:
        UnsupportedValueError: Something else is in there.
    """
    kind = type(value)
    if kind in _CONSTANTS:
        return (kind, value)
    if isinstance(value, Tensor):
        tensors.append(value)
        return kind  # constants are tuples, so this stands for a tensor
    if kind is tuple or kind is list:
        return (kind, *[flatten(item, tensors) for item in value])
    if kind is dict or isinstance(value, MutableMapping):
        _refuse_hidden(value, value)
        items = [(flatten(k, _NoTensors()), flatten(item, tensors)) for k, item in value.items()]
        return (kind, *items)
    if kind is float:
        return (float, value.hex())  # tells -0.0 from 0.0, and a NaN equals itself
    if kind is complex:
        return (complex, value.real.hex(), value.imag.hex())
    if kind is slice:
        return (slice, *[flatten(part, []) for part in (value.start, value.stop, value.step)])
    if isinstance(value, (Enum, type)):
        return (kind, value)
    if isinstance(value, tuple):
        return (kind, *[flatten(item, tensors) for item in value])
    if dataclasses.is_dataclass(value):
        _refuse_hidden(value, _fields(value))
        return (kind, *[flatten(item, tensors) for item in _fields(value).values()])
    if kind is frozenset or kind is set:
        return (kind, frozenset(flatten(item, _NoTensors()) for item in value))
    raise UnsupportedValueError(value)


def rebuild(value: Any, tensors: Iterator[Tensor]) -> Any:
    """A copy of a flattened value with other tensors, in the order of `flatten`."""
    kind = type(value)
    if isinstance(value, Tensor):
        return next(tensors)
    if kind is tuple or kind is list:
        return kind(rebuild(item, tensors) for item in value)
    if kind is dict:
        return {name: rebuild(item, tensors) for name, item in value.items()}
    if isinstance(value, MutableMapping):
        # Transformers' ModelOutput is both a mapping and a dataclass: its items set its fields.
        copied = copy.copy(value)
        for name, item in value.items():
            copied[name] = rebuild(item, tensors)
        return copied
    if isinstance(value, tuple) and kind is not torch.Size:
        items = [rebuild(item, tensors) for item in value]
        return kind(*items) if hasattr(value, "_fields") else kind(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        instance = copy.copy(value)
        for name, item in _fields(value).items():
            # Not `replace`: it runs __init__ again; not setattr: the class may be frozen.
            object.__setattr__(instance, name, rebuild(item, tensors))
        return instance
    return set(value) if kind is set else value


def _refuse_hidden(value: Any, shown: Mapping[Any, Any]) -> None:
    """Refuse an object with attributes besides its items or fields: they may hold tensors."""
    if type(value) in (dict, OrderedDict):
        return
    hidden = getattr(value, "__dict__", {}).keys() - shown.keys() - {"data"}
    if any(getattr(value, name) is not None for name in hidden if name not in _fields_of(value)):
        raise UnsupportedValueError(value)


def _fields_of(value: Any) -> set[str]:
    """The names of a dataclass's fields; none for another object."""
    if not dataclasses.is_dataclass(value):
        return set()
    return {field.name for field in dataclasses.fields(value)}


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


class _NoTensors(list[Tensor]):
    """Refuses tensors: a set has no order to put them back in."""

    def append(self, tensor: Tensor) -> None:
        raise UnsupportedValueError(tensor)
