"""Streams and events, whose books are real and whose work is done before they are asked.

The emulated device computes at once, so no stream ever has to wait for another. What Python can
observe is kept: which stream is current, the flushes that a lazy card makes when streams change,
are asked or record an event (bridge 1.19.0, ``HPUStream.cpp`` and ``HPUEvent.cpp``), and the host's
time between two events.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator import accounting
from lightning_gaudi.emulator.tensor import HPUTensor
from lightning_gaudi.emulator.transfer import check_index

_PlainStream: Any = torch.Stream
_PlainEvent: Any = torch.Event
_numbers = itertools.count(1)
_thread = threading.local()


def _check_device(device: Any) -> None:
    """Accept what may stand for this process's one device.

    Raises:
        RuntimeError: It is another card.
        ValueError: It is no HPU.
    """
    if device is None:
        return
    target = torch.device("hpu", device) if isinstance(device, int) else torch.device(device)
    if target.type != "hpu":
        raise ValueError(f"Expected a hpu device, but got: {device}")
    check_index(target)


class Stream(_PlainStream):  # type: ignore[misc]
    """A sequence of work on the device.

    Args:
        device: The device; there is one.
        priority: Kept, and otherwise ignored.
        stream_id: The stream's number; a new one by default, and 0 for the default stream.

    Raises:
        RuntimeError: Another card is asked for.
        ValueError: `device` is no HPU.
    """

    priority: int

    def __new__(
        cls, device: Any = None, priority: int = 0, *, stream_id: int | None = None, **options: Any
    ) -> Stream:
        """Make a stream; PyTorch's class takes its arguments here."""
        _check_device(device)
        _check_device(options.get("device_index"))
        stream: Stream = super().__new__(
            cls,
            stream_id=next(_numbers) if stream_id is None else stream_id,
            device_index=0,
            device_type=_PlainStream(device="hpu").device_type,
        )
        stream.priority = priority
        return stream

    @property
    def hpu_stream(self) -> int:
        """The device's handle of the stream; its number here."""
        return self.id()

    def id(self) -> int:
        """The stream's number; 0 is the default stream's."""
        return int(self.stream_id)

    def query(self) -> bool:
        """Whether all its work is done: flushes what is pending, and then it is."""
        accounting.flush("Stream.query")
        return True

    def synchronize(self) -> None:
        """Flush what is pending and wait for it."""
        accounting.flush("Stream.synchronize")

    def record_event(self, event: Event | None = None) -> Event:
        """Record an event, a new one by default, and return it."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Let later work on this stream wait for an event."""
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        """Let later work on this stream wait for what another one has to do now."""
        self.wait_event(stream.record_event())

    def __enter__(self) -> Stream:
        _stack().append(current_stream())
        set_stream(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        set_stream(_stack().pop())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.id() == other.id()

    def __hash__(self) -> int:
        return hash(("hpu", self.id()))

    def __repr__(self) -> str:
        return f"<torch.hpu.Stream device={self.device} hpu_stream={self.id():#x}>"


class Event(_PlainEvent):  # type: ignore[misc]
    """A mark in a stream.

    Args:
        enable_timing: Whether `elapsed_time` may be asked.
    """

    _recorded_at: float | None = None
    _has_timing = False

    def __new__(cls, enable_timing: bool = False) -> Event:
        """Make an event; PyTorch's class takes its arguments here."""
        event: Event = super().__new__(cls, device="hpu", enable_timing=enable_timing)
        event._has_timing = enable_timing
        return event

    def record(self, stream: Stream | None = None) -> None:
        """Mark this moment in a stream, the current one by default.

        In lazy mode what is pending is flushed, unless the stream is not the current one.
        """
        if stream is None or stream == current_stream():
            accounting.flush("Event.record")
        self._recorded_at = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        """Let later work on a stream wait for the mark, which has always been reached here."""

    def query(self) -> bool:
        """Whether the work before the mark is done; also true where nothing was ever recorded."""
        return True

    def synchronize(self) -> None:
        """Wait for the mark, which has always been reached here."""

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds of the host's time from this mark to a later one.

        Raises:
            RuntimeError: One of the two was made without ``enable_timing`` or never recorded.
        """
        if not (self._has_timing and end_event._has_timing):
            raise RuntimeError("Both events must be created with argument 'enable_timing=True'.")
        if self._recorded_at is None or end_event._recorded_at is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return (end_event._recorded_at - self._recorded_at) * 1e3

    def __repr__(self) -> str:
        state = "uninitialized" if self._recorded_at is None else "recorded"
        return f"<torch.hpu.Event {state}>"


def _stack() -> list[Stream]:
    """The streams that ``with`` blocks of this thread have to put back."""
    if not hasattr(_thread, "stack"):
        _thread.stack = []
    stack: list[Stream] = _thread.stack
    return stack


def current_stream(device: Any = None) -> Stream:
    """The stream that new work joins in this thread."""
    _check_device(device)
    if not hasattr(_thread, "current"):
        _thread.current = default_stream()
    stream: Stream = _thread.current
    return stream


def default_stream(device: Any = None) -> Stream:
    """The stream that every thread begins with."""
    return Stream(device, stream_id=0)


def set_stream(stream: Stream | None) -> None:
    """Choose the current stream; another one than now flushes what is pending. None: no change."""
    if stream is None or stream == current_stream():
        return
    accounting.flush("set_stream")
    _thread.current = stream


class StreamContext:
    """Chooses a stream for a ``with`` block.

    Args:
        stream: The stream; None changes nothing.
    """

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.__enter__()

    def __exit__(self, *exc_info: object) -> None:
        if self.stream is not None:
            self.stream.__exit__()


def stream(stream: Stream | None) -> StreamContext:
    """A ``with`` block whose work joins a stream."""
    return StreamContext(stream)


def get_stream_info(stream: Stream) -> tuple[int, int]:
    """The index of a stream's device, and the stream's number."""
    return 0, stream.id()


def record_stream(tensor: Tensor, stream: Stream) -> None:
    """Tell the allocator that a stream uses a tensor; its memory lives as long as it is held.

    Raises:
        TypeError: `stream` is no stream.
    """
    if not isinstance(stream, _PlainStream):
        raise TypeError(
            f"record_stream(): argument 'stream' must be Stream, not {type(stream).__name__}"
        )


class _StreamType(type):
    """Makes ``torch.Stream`` give our stream for our device, and PyTorch's for others."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if _means_hpu(args, kwargs):
            return Stream(*args, **kwargs)
        return _PlainStream(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _PlainStream)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _PlainStream)


class _EventType(type):
    """Makes ``torch.Event`` give our event for our device, and PyTorch's for others."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not _means_hpu(args, kwargs):
            return _PlainEvent(*args, **kwargs)
        _check_device(args[0] if args else kwargs.get("device"))
        return Event(bool(kwargs.get("enable_timing", False)))

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _PlainEvent)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _PlainEvent)


def _means_hpu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a stream or an event is asked for on our device, which is also the default."""
    if "stream_id" in kwargs:
        return bool(kwargs.get("device_type") == _PlainStream(device="hpu").device_type)
    device = args[0] if args else kwargs.get("device")
    return device is None or isinstance(device, int) or torch.device(device).type == "hpu"


def attach() -> None:
    """Put our classes where PyTorch's are."""
    torch.Stream = _StreamType("Stream", (), {"__doc__": _PlainStream.__doc__})  # type: ignore[assignment, misc]
    torch.Event = _EventType("Event", (), {"__doc__": _PlainEvent.__doc__})  # type: ignore[assignment, misc]
    torch.accelerator.current_stream = current_stream
    torch.accelerator.set_stream = set_stream  # type: ignore[assignment]
    HPUTensor.record_stream = record_stream  # type: ignore[method-assign, assignment]
