"""Which ops make the host wait for the device, and a mode that notices them while it is active.

A card does not count host reads. `HostReadMode` does, on any device, through PyTorch's dispatch
mode; it costs a few microseconds an op. The guard of captures asks `read_of` the same question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gaudi.emulator.events import Event, EventKind
from lightning_gaudi.emulator.source import locate, spell

Read = Literal["value", "shape", "copy"]

# They answer from what the host knows.
METADATA = frozenset(
    {
        "aten::is_pinned",
        "aten::is_same_size",
        "aten::_version",
        "aten::_fused_sdp_choice",
        "aten::_has_compatible_shallow_copy_type",
        "aten::_has_same_storage_numel",
        "aten::is_floating_point",
        "aten::is_complex",
        "aten::is_signed",
        "aten::is_inference",
        "aten::is_leaf",
    }
)
_INDEXING = frozenset(
    {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
)
_DATA_DEPENDENT = frozenset({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output})
_NUMBER_TYPES = (torch.IntType, torch.FloatType, torch.BoolType, torch.NumberType)
# It looks at an error code on the host, but its schema returns nothing and it has no tag.
_SILENT_READS = frozenset({"aten::_linalg_check_errors"})
# Whether a result's size is given, by the op whose tag says that it depends on data.
_SIZE_ARGUMENTS = {"aten::repeat_interleave": "output_size", "aten::one_hot": "num_classes"}
# Composites, which arrive whole under inference mode and have no tag.
_UNTAGGED = frozenset({"aten::where", "aten::repeat_interleave", "aten::argwhere"})
# Python methods that read past the dispatcher, or that are one read however many ops they run.
_WHOLE_READS = ("tolist", "__repr__")
# These run with all modes off inside torch.tensor([x[0], x[1]]).
_PAST_DISPATCH = ("__float__", "__int__", "__index__", "__bool__", "__complex__")


def read_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Read | None:
    """What an op on device tensors makes the host wait for, as far as its call tells.

    Args:
        func: The op's overload.
        args: Its arguments, a tensor on the device among them or in `kwargs`.
        kwargs: Its keyword arguments.

    Returns:
        ``"value"`` for a number or a bool, ``"shape"`` for a shape that depends on data, ``"copy"``
        for a copy into a CPU tensor; None for what does not wait or shows in the result only.
    """
    schema = func._schema
    name = schema.name
    if name in METADATA:
        return None
    if name in _SILENT_READS or any(isinstance(r.type, _NUMBER_TYPES) for r in schema.returns):
        return "value"
    if name in _INDEXING:
        # One value under a mask is masked_fill; with several, their number must fit the mask.
        depends_on_data = _has_bool_index(args) and (len(args) < 3 or args[2].numel() != 1)
    else:
        is_tagged = not _DATA_DEPENDENT.isdisjoint(func.tags)
        if not is_tagged and name in _UNTAGGED:
            is_tagged = _is_for_data(name, args)
        depends_on_data = is_tagged and not _has_size(name, func, args, kwargs)
    if depends_on_data:
        return "shape"
    return "copy" if name == "aten::copy_" and args[0].device.type == "cpu" else None


def _has_bool_index(args: tuple[Any, ...]) -> bool:
    return any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )


def _is_for_data(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a call of an untagged composite is one whose shape depends on data."""
    if name == "aten::repeat_interleave":
        return any(isinstance(value, Tensor) for value in args[1:])
    return len(args) == 1


def _has_size(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call itself says how large the result is."""
    wanted = _SIZE_ARGUMENTS.get(name)
    if wanted is None:
        return False
    names = [argument.name for argument in func._schema.arguments]
    place = names.index(wanted) if wanted in names else len(args)
    size = args[place] if place < len(args) else kwargs.get(wanted)
    return size is not None and size >= 0


def _is_on_device(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.device.type not in ("cpu", "meta")
    return isinstance(value, (list, tuple)) and any(map(_is_on_device, value))


def _is_on_host(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu"


class HostReadMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down each host read and each copy to the host, with the user's line.

    Modes must end in the opposite order of their beginning; `recorded_host_reads` need not.

    Args:
        records: Lists that take what it sees, while they are in there; None for `events` alone.

    Attributes:
        events: What it has seen: ``host_read`` and ``d2h``. Whoever reads it may empty it.
    """

    def __init__(self, records: list[list[Event]] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[Event] = []
        self._records = [self.events] if records is None else records
        self._num_noted = 0
        self._patches = ExitStack()
        self._depth = 0  # of Python methods that are one read together

    def __enter__(self) -> HostReadMode:
        for cls in (Tensor, *Tensor.__subclasses__()):
            for name in (*_WHOLE_READS, *_PAST_DISPATCH):
                if name in vars(cls) or cls is Tensor:
                    watched = self._watched(name, getattr(cls, name))
                    self._patches.enter_context(patch.object(cls, name, watched))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc, traceback)  # type: ignore[no-untyped-call]
        self._patches.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _is_on_device(args) or (kwargs and _is_on_device(tuple(kwargs.values()))):
            read = read_of(func, args, kwargs)
            if read is None and _is_on_host(result) and func._schema.name not in METADATA:
                read = "copy"
            name = func._schema.name.removeprefix("aten::")
            if read == "copy":
                self._note("d2h", name)
            elif read is not None and not self._depth:
                self._note("host_read", name)
        return result

    def _note(self, kind: EventKind, cause: str) -> None:
        place = spell(locate())
        event = Event(kind=kind, cause=cause, line=place.line, library=place.library, via=place.via)
        self._num_noted += 1
        for record in self._records:
            record.append(event)

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """A method of tensors that reads the device, noted as one read."""
        is_whole = name in _WHOLE_READS

        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._depth or not _is_on_device(tensor):
                return original(tensor, *args, **kwargs)
            if is_whole:
                self._note("host_read", name.strip("_"))
            num_before = self._num_noted
            self._depth += is_whole
            try:
                value = original(tensor, *args, **kwargs)
            finally:
                self._depth -= is_whole
            if not is_whole and self._num_noted == num_before:
                self._note("host_read", name)
            return value

        return method


_records: list[list[Event]] = []
_shared: HostReadMode | None = None


@contextmanager
def recorded_host_reads() -> Iterator[list[Event]]:
    """Record host reads and copies to the host; several records may end in any order.

    They share one mode, which ends with the last of them: two callbacks of a Trainer begin and end
    in the same order, and modes and patches of their own would not come off again.

    Yields:
        The events so far. Whoever reads it may empty it.
    """
    global _shared
    events: list[Event] = []
    if _shared is None:
        _shared = HostReadMode(_records).__enter__()
    _records.append(events)
    try:
        yield events
    finally:
        # By identity: two open records with equal contents are equal lists.
        _records[:] = [other for other in _records if other is not events]
        if not _records:
            mode, _shared = _shared, None
            mode.__exit__(None, None, None)
