"""Finds what a capture would freeze: host reads, and values that come from the host.

A card raises nothing when a forward under capture reads a device value on the host: the value of
the first call is used for ever, and replays are silently wrong. `CaptureGuard` is a dispatch mode,
active during capture only, on any device. It sees every op with its tensors and refuses

- an op that gives the host a number, a bool or a shape that depends on device data;
- a copy from the device to the host;
- a tensor from outside, on either side, that is neither an argument nor a weight of the watched
  module: a replay would keep its first value, and nobody would notice when it is replaced;
- CPU random numbers, PyTorch's, Python's and NumPy's, which would be the same in every replay;
- a collective, unless ``PT_HPU_ENABLE_LAZY_COLLECTIVES`` puts them into graphs (CARD.md 14).

CPU tensors that the forward makes itself from Python numbers are constants and pass.

What it cannot see, and does not refuse: numbers from generators that the user made
(``random.Random()``, ``numpy.random.default_rng()``), the clock, files; values that another thread
reads; what native code does through ``data_ptr()``. The address itself is no data: comparing two
tells whether tensors share memory, which the key holds, so that answer stays right.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gaudi.errors import HostReadError
from lightning_gaudi.graphs.transformers_masks import masks_are_built
from lightning_gaudi.graphs.undo import Snapshot
from lightning_gaudi.runtime import environment
from lightning_gaudi.runtime.host_reads import METADATA, read_of
from lightning_gaudi.runtime.source import library_line, source_line

# What torch.tensor and indexing by a number call on the constant that they have just made.
_FRESH = frozenset({"aten::lift_fresh", "aten::lift_fresh_copy"})
# Running statistics: the schema does not say that it writes to them (3 and 4), and whether it does
# is another argument (5).
_BATCH_NORMS = frozenset({"aten::native_batch_norm", "aten::_native_batch_norm_legit"})
# These run with all modes off: printing, and what torch.tensor([x[0], x[1]]) calls.
_PAST_DISPATCH = ("__repr__", "__float__", "__int__", "__index__", "__bool__", "__complex__")
_COLLECTIVES = frozenset({"c10d", "_c10d_functional", "c10d_functional"})

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
_REMEDY_COLLECTIVE = (
    "Capture the module inside the distributed wrapper, or export PT_HPU_ENABLE_LAZY_COLLECTIVES=1 "
    "before Python starts."
)

# What `read_of` finds, in words, and the remedy.
_READS = {
    "value": ("reads a device value on the host", _REMEDY_VALUE),
    "shape": ("has a result whose shape depends on data", _REMEDY_SHAPE),
    "copy": ("copies a device tensor to the host", _REMEDY_COPY),
}


class CaptureGuard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what a capture would freeze. Made before the capture, for it copies buffers.

    While it is active stock Transformers models build their masks without looking at them (see
    `transformers_masks`).

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
        draws_random: Whether it draws random numbers on the device.
        has_written_weights: Whether it wrote to a parameter or buffer, so that running it once more
            would write twice, unless `undo` is called in between.
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
        self.draws_random = False
        self._before = Snapshot(weights)
        self._can_undo = True
        self._written_storages: set[int] = set()
        self._line = ""
        self._patches = ExitStack()
        self._weights = {_storage_of(tensor) for tensor in weights}
        self._inputs = {_storage_of(tensor): place for place, tensor in enumerate(inputs)}
        # Storages that may be used. Those made during the capture are not kept alive: a tensor from
        # outside lives through all of it, so its storage cannot have the address of one of them.
        self._known = self._weights | self._inputs.keys()
        # Kept alive, so that no later tensor gets the id of an earlier one.
        self._host_tensors = {id(tensor): tensor for tensor in host_arguments}

    def undo(self) -> bool:
        """Put back what a refused forward has changed, so that it can run once more.

        Buffers and the random states of the device, Python and NumPy are as before. To be called
        when the capture has ended.

        Returns:
            Whether that is all: False if it wrote to a parameter.
        """
        self._before.restore(self._written_storages)
        return self._can_undo

    def __enter__(self) -> CaptureGuard:
        self._patches.enter_context(masks_are_built())
        for name in _PAST_DISPATCH:
            refusing = self._refusing(name, getattr(Tensor, name))
            self._patches.enter_context(patch.object(Tensor, name, refusing))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc, traceback)  # type: ignore[no-untyped-call]
        self._patches.close()
        if self.failure is None and exc is None:
            self._check_host_randomness(self._line)
        elif self.failure is not None and isinstance(exc, Exception) and exc is not self.failure:
            raise self.failure from exc  # the forward made its own error of the refusal

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        line = source_line()
        if line != self._line:  # 60 us a look, so not at every op of a line
            self._check_host_randomness(line)
            self._line = line
        on_device, on_host = _tensors_by_side((*args, *kwargs.values()))
        name = func._schema.name
        if func.namespace in _COLLECTIVES and not environment.has_lazy_collectives():
            self._refuse(
                name, "is a collective, which the graph would leave out", _REMEDY_COLLECTIVE
            )
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
        if _draws(func, args, kwargs):
            if not on_device and not _is_for_device(kwargs):
                self._refuse(name, "draws random numbers on the CPU", _REMEDY_RANDOM)
            self.draws_random = True
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
        if name in METADATA:
            return
        schema = func._schema
        read = read_of(func, args, kwargs)
        if read is not None:
            self._refuse(name, *_READS[read])
        if name in _BATCH_NORMS and len(args) > 5:
            for tensor in args[3:5] if args[5] else ():
                if tensor is not None:
                    self._note_write(_storage_of(tensor))
            return
        for position, argument in enumerate(schema.arguments):
            alias = argument.alias_info
            if alias is not None and alias.is_write:
                value = args[position] if position < len(args) else kwargs.get(argument.name)
                for tensor in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(tensor, Tensor):
                        self._note_write(_storage_of(tensor))

    def _note_write(self, storage: int) -> None:
        place = self._inputs.get(storage)
        if place is not None:
            self.written.add(place)
        if storage in self._weights:
            self.has_written_weights = True
            self._written_storages.add(storage)
            self._can_undo &= self._before.holds(storage)

    def _check_host_randomness(self, line: str) -> None:
        library = self._before.host_randomness.changed()
        if library is not None:
            self._refuse(
                f"{library} (the host's)", "draws random numbers on the CPU", _REMEDY_RANDOM, line
            )

    def _refusing(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """A method of tensors that is refused for those on the device."""

        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            on_device = tensor.device.type not in ("cpu", "meta")
            if on_device and name == "__repr__":
                self._refuse("repr", "copies a device tensor to the host", _REMEDY_COPY)
            value = original(tensor, *args, **kwargs)
            if on_device:  # had dispatch seen it, it would have been refused there
                self._refuse(name, "reads a device value on the host", _REMEDY_VALUE)
            return value

        return method

    def _refuse(self, name: str, what: str, remedy: str, line: str = "") -> None:
        place = line or library_line()
        line = line or source_line()
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


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call draws random numbers; attention does with dropout only."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    if "dropout_p" not in names:
        return True
    place = names.index("dropout_p")
    return bool(args[place] if place < len(args) else kwargs.get("dropout_p"))


def _is_for_device(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type != "cpu"
