"""A copy of a checkpoint on the host: nothing in it is on the device or will change.

Pickling walks the checkpoint, whatever objects it consists of, and gives each tensor to us instead
of writing it; unpickling builds the same structure on the copies. So tensors are found wherever
they are, objects that occur twice stay one, and what cannot be pickled shows at once.

Tensors are copied by memory, not one by one. Those that overlap (tied weights, a view and what it
views) are cut out of one copy, and memory that nothing in the checkpoint looks at is left behind.
"""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


@dataclass(kw_only=True)
class HostCopy:
    """What `copy_to_host` gives.

    Attributes:
        content: The checkpoint, with tensors on the CPU.
        num_bytes: How much memory its tensors take; a file takes a little more.
    """

    content: Any
    num_bytes: int = field(default=0)


def copy_to_host(checkpoint: Any, *, keep_host_tensors: bool = False) -> HostCopy:
    """Copy a checkpoint to the host, with one break of the lazy graph at most.

    Args:
        checkpoint: What ``torch.save`` accepts.
        keep_host_tensors: Whether tensors that are on the CPU already, and whose memory the
            checkpoint holds in whole, are taken as they are; else they are copied too.

    Returns:
        The copy. Nothing in it aliases the checkpoint, except for such tensors.

    Raises:
        Exception: Something in the checkpoint cannot be pickled; as pickle raises it.
    """
    structure = io.BytesIO()
    tensors: list[Tensor] = []
    _Taking(structure, tensors).dump(checkpoint)
    with torch.no_grad():
        copies = _copy_all(tensors, keep_host_tensors=keep_host_tensors)
    strided = [copy.untyped_storage() for copy in copies if copy.layout is torch.strided]
    sizes = {storage._cdata: storage.nbytes() for storage in strided}
    for place, (tensor, copy) in enumerate(zip(tensors, copies, strict=True)):
        if isinstance(tensor, Parameter):
            copies[place] = Parameter(copy, requires_grad=tensor.requires_grad)
        elif tensor.requires_grad:
            copies[place] = copy.detach().requires_grad_()
    structure.seek(0)
    return HostCopy(content=_Giving(structure, copies).load(), num_bytes=sum(sizes.values()))


class _Taking(pickle.Pickler):
    """Pickles everything but tensors, which it puts into a list."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._tensors = tensors
        self._places: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Tensor) or not _is_plain(obj):
            return None
        place = self._places.setdefault(id(obj), len(self._tensors))
        if place == len(self._tensors):
            self._tensors.append(obj)
        return place


class _Giving(pickle.Unpickler):
    """Unpickles with the copies in the tensors' places."""

    def __init__(self, file: io.BytesIO, copies: list[Tensor]) -> None:
        super().__init__(file)
        self._copies = copies

    def persistent_load(self, pid: Any) -> Tensor:
        copy: Tensor = self._copies[pid]
        return copy


def _is_plain(tensor: Tensor) -> bool:
    """Whether a copy of its memory is all that a file needs of a tensor."""
    # A subclass (a distributed or quantized tensor) has more, and its own way to be pickled. The
    # emulated HPU's tensors are of a type of their own.
    if tensor.device.type == "hpu":
        return not hasattr(tensor, "to_local")
    is_usual = type(tensor) in (Tensor, Parameter) and not vars(tensor)
    return is_usual and tensor.device.type == "cpu"


# --- memory ---------------------------------------------------------------------------------------


def _copy_all(tensors: Sequence[Tensor], *, keep_host_tensors: bool) -> list[Tensor]:
    by_memory: dict[Any, list[int]] = defaultdict(list)
    for place, tensor in enumerate(tensors):
        by_memory[_memory_of(tensor, place)].append(place)
    # First all views, then all copies: a view is an op, and a copy flushes what is pending.
    plans: list[_Plan] = []
    for places in by_memory.values():
        group = [(place, tensors[place].detach()) for place in places]
        plans.extend(_plans(group) if _has_memory(group[0][1]) else [_alone(group[0][1], places)])
    copies: dict[int, Tensor] = {}
    for plan in plans:
        source = plan.source
        is_whole = source.numel() * source.itemsize == _num_storage_bytes(source)
        if source.device.type == "cpu" and keep_host_tensors and is_whole:
            host = source
        elif source.device.type == "cpu":
            host = source.clone()
        else:
            host = source.cpu()
        for place, view in plan.views:
            copies[place] = host if view is None else host.as_strided(*view)
    return [copies[place] for place in range(len(tensors))]


def _memory_of(tensor: Tensor, place: int) -> Any:
    """What is the same for two tensors on the same memory and for no others."""
    if not _has_memory(tensor):
        return "alone", place
    return tensor.device.type, tensor.untyped_storage()._cdata


def _has_memory(tensor: Tensor) -> bool:
    """Whether a tensor is one stretch of memory that can be looked at in other ways."""
    is_as_stored = not (tensor.is_conj() or tensor.is_neg() or tensor.is_quantized)
    return tensor.layout is torch.strided and is_as_stored


def _num_storage_bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() if tensor.layout is torch.strided else -1


_View = tuple[tuple[int, ...], tuple[int, ...], int]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """One copy, and what is cut out of it.

    Attributes:
        source: What is copied.
        views: Places in the list of tensors, each with its size, stride and offset in the copy;
            None for the copy itself.
    """

    source: Tensor
    views: list[tuple[int, _View | None]]


def _plans(group: list[tuple[int, Tensor]]) -> list[_Plan]:
    """Plan the copies for tensors on one memory: one for each part of it that they overlap in."""
    alike: dict[Any, list[int]] = defaultdict(list)
    tensors: dict[Any, Tensor] = {}
    for place, tensor in group:
        geometry = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        key = (tensor.dtype, geometry)
        alike[key].append(place)
        tensors[key] = tensor
    if len(tensors) > 1 and len({key[0] for key in tensors}) > 1:
        # One memory seen as two kinds of numbers, which a file cannot say: a copy for each.
        return [_alone(tensors[key], places) for key, places in alike.items()]
    parts: list[tuple[int, int, list[Any]]] = []  # begin, end, in elements
    for key in sorted(alike, key=lambda key: tensors[key].storage_offset()):
        begin = int(tensors[key].storage_offset())
        end = begin + _extent(tensors[key])
        if parts and begin < parts[-1][1]:
            parts[-1] = (parts[-1][0], max(parts[-1][1], end), [*parts[-1][2], key])
        else:
            parts.append((begin, end, [key]))
    plans = []
    for begin, end, keys in parts:
        first = tensors[keys[0]]
        if len(keys) == 1 and first.numel() <= end - begin:
            plans.append(_alone(first, alike[keys[0]]))
            continue
        views: list[tuple[int, _View | None]] = [
            (
                place,
                (
                    tuple(tensors[key].shape),
                    tensors[key].stride(),
                    int(tensors[key].storage_offset()) - begin,
                ),
            )
            for key in keys
            for place in alike[key]
        ]
        plans.append(_Plan(source=first.as_strided((end - begin,), (1,), begin), views=views))
    return plans


def _alone(tensor: Tensor, places: list[int]) -> _Plan:
    return _Plan(source=tensor, views=[(place, None) for place in places])


def _extent(tensor: Tensor) -> int:
    """How many elements of its memory lie between a tensor's first and last, both included."""
    if tensor.numel() == 0:
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)
