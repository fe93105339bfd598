"""Finds what a capture would freeze: host reads, and values that come from the host.

A card raises nothing when a forward under capture reads a device value on the host: the value of
the first call is used for ever, and replays are silently wrong. `CaptureGuard` is a dispatch mode,
active during capture only, on any device. It sees every op with its tensors and refuses

- an op that gives the host a number, a bool or a shape that depends on device data;
- a copy from the device to the host;
- a tensor from outside, on either side, that is neither an argument nor a weight of the watched
  module: a replay would keep its first value, and nobody would notice when it is replaced;
- CPU random numbers, which would be the same in every replay.

CPU tensors that the forward makes itself from Python numbers are constants and pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gaudi.errors import HostReadError
from lightning_gaudi.runtime.source import library_line, source_line

_METADATA = frozenset({"aten::is_pinned", "aten::is_same_size", "aten::_version"})
_INDEXING = frozenset({"aten::index", "aten::index_put", "aten::index_put_"})
_DATA_DEPENDENT = frozenset({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output})
# What torch.tensor and indexing by a number call on the constant that they have just made.
_FRESH = frozenset({"aten::lift_fresh", "aten::lift_fresh_copy"})
_NUMBER_TYPES = (torch.IntType, torch.FloatType, torch.BoolType, torch.NumberType)

_REMEDY_VALUE = (
    "Keep the decision on the device (torch.where, masked_fill), or read the value before the "
    "call and pass it as an argument, so that it is part of the graph's key."
)
_REMEDY_SHAPE = (
    "Give the result a fixed shape (torch.where or masked_fill in place of selecting, one_hot in "
    "place of unique), or move the op out of the captured forward."
)
_REMEDY_COPY = "Move the copy behind the call, out of the captured forward."
_REMEDY_OUTSIDE = (
    "Put it on the device before the call, as a buffer (register_buffer) or as an argument."
)
_REMEDY_UNKNOWN = (
    "Make it a buffer of the module (register_buffer) or an argument of the forward; a metric's "
    "state belongs outside of it. A function that uses a module's weights needs module=... ."
)
_REMEDY_RANDOM = "Draw on the device (device=x.device), or before the call and pass the result."


class CaptureGuard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what a capture would freeze.

    Args:
        target: What is being captured, for the message.
        inputs: The static inputs, to notice writes to them.
        weights: The watched module's parameters and buffers.
        host_arguments: CPU tensors among the call's arguments; the key holds their values.

    Attributes:
        last_line: The user's line of an op that failed.
        failure: The first refusal. The forward may have swallowed the exception; the capture is
            worthless all the same.
        written: Places in `inputs` whose storage the forward wrote to.
        has_written_weights: Whether it wrote to a parameter or buffer, so that running it once more
            would write twice.
    """

    def __init__(
        self,
        target: str,
        inputs: list[Tensor],
        weights: list[Tensor],
        host_arguments: list[Tensor],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.failure: HostReadError | None = None
        self.last_line = ""
        self.written: set[int] = set()
        self._target = target
        self.has_written_weights = False
        self._weights = {_storage_of(tensor) for tensor in weights}
        self._inputs = {_storage_of(tensor): place for place, tensor in enumerate(inputs)}
        # Storages that may be used. Those made during the capture are not kept alive: a tensor from
        # outside lives through all of it, so its storage cannot have the address of one of them.
        self._known = self._weights | self._inputs.keys()
        # Kept alive, so that no later tensor gets the id of an earlier one.
        self._host_tensors = {id(tensor): tensor for tensor in host_arguments}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        on_device, on_host = _tensors_by_side((*args, *kwargs.values()))
        name = func._schema.name
        for tensor in on_host if name not in _FRESH else ():
            if id(tensor) not in self._host_tensors:
                self._refuse(
                    name, "uses a CPU tensor that was made outside the forward", _REMEDY_OUTSIDE
                )
        for tensor in on_device if name not in _FRESH else ():
            if _storage_of(tensor) not in self._known:
                self._refuse(
                    name,
                    f"uses a device tensor of shape {tuple(tensor.shape)} that is neither an "
                    "argument nor a weight",
                    _REMEDY_UNKNOWN,
                )
        if on_device:
            self._check_device_op(func, name, args, kwargs)
        elif torch.Tag.nondeterministic_seeded in func.tags and not _is_for_device(kwargs):
            self._refuse(name, "draws random numbers on the CPU", _REMEDY_RANDOM)
        try:
            result = func(*args, **kwargs)
        except RuntimeError:
            self.last_line = source_line()
            raise
        device_results, host_results = _tensors_by_side((result,))
        self._known.update(map(_storage_of, device_results))
        for tensor in host_results:
            if on_device and id(tensor) not in self._host_tensors:
                self._refuse(name, "copies a device tensor to the host", _REMEDY_COPY)
            self._host_tensors[id(tensor)] = tensor
        return result

    def _check_device_op(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if name in _METADATA:
            return
        schema = func._schema
        if any(isinstance(r.type, _NUMBER_TYPES) for r in schema.returns):
            self._refuse(name, "reads a device value on the host", _REMEDY_VALUE)
        if name in _INDEXING:
            # One value under a mask is masked_fill; with several, their number must fit the mask.
            depends_on_data = _has_bool_index(args) and (len(args) < 3 or args[2].numel() != 1)
        else:
            depends_on_data = not _DATA_DEPENDENT.isdisjoint(func.tags)
        if depends_on_data:
            self._refuse(name, "has a result whose shape depends on data", _REMEDY_SHAPE)
        if name == "aten::copy_" and args[0].device.type == "cpu":
            self._refuse(name, "copies a device tensor to the host", _REMEDY_COPY)
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[position] if position < len(args) else kwargs.get(argument.name)
                for tensor in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(tensor, Tensor):
                        self._note_write(_storage_of(tensor))

    def _note_write(self, storage: int) -> None:
        place = self._inputs.get(storage)
        if place is not None:
            self.written.add(place)
        self.has_written_weights |= storage in self._weights

    def _refuse(self, name: str, what: str, remedy: str) -> None:
        line, place = source_line(), library_line()
        where = f"at {place}" if place == line else f"at {place}, called from your line {line}"
        error = HostReadError(
            f"cannot capture {self._target} as an HPU graph: {name} {what}, {where}. In a graph "
            f"what the host saw in the first call would be used for ever. {remedy} To run this "
            "target without graphs: on_failure='eager'."
        )
        self.failure = self.failure or error
        raise error


def _storage_of(tensor: Tensor) -> int:
    # The address of the storage object; data_ptr() means little in lazy mode (CARD.md 11).
    address: int = tensor.untyped_storage()._cdata
    return address


def _tensors_by_side(values: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor]]:
    on_device: list[Tensor] = []
    on_host: list[Tensor] = []
    pending = list(values)
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            (on_host if value.device.type == "cpu" else on_device).append(value)
        elif isinstance(value, (list, tuple)):
            pending.extend(value)
    return on_device, on_host


def _has_bool_index(args: tuple[Any, ...]) -> bool:
    return any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )


def _is_for_device(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type != "cpu"
