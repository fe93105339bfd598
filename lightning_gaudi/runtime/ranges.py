"""Named ranges: where a profile shows what the device was made to do.

`torch.profiler.record_function` costs microseconds even where nobody profiles, and a replay takes
little more. So whoever has a range to name asks `is_on` first, which is one look-up::

    if ranges.is_on:
        with ranges.named(ranges.REPLAY):
            graph.replay()
    else:
        graph.replay()

The emulated HPU flushes inside ops, where no code of ours could name it, so it is handed the way
to do so. On a card a flush cannot be seen from Python, only the mark step or the read behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from torch.profiler import record_function

from lightning_gaudi import emulator

MARK_STEP = "mark_step"
FLUSH = "flush"
CAPTURE = "capture"
REPLAY = "replay"
PADDED_CALL = "padded_call"
WARMUP = "graph_warmup"
NAMES = (MARK_STEP, FLUSH, CAPTURE, REPLAY, PADDED_CALL, WARMUP)
"""All names, as a trace has them."""

is_on = False
"""Whether somebody profiles. Read it as ``ranges.is_on``; `opened` sets it."""

_num_open = 0

_P = ParamSpec("_P")
_R = TypeVar("_R")


def named(name: str) -> record_function:
    """A context manager whose block is a range of the profile."""
    return record_function(name)


def in_range(name: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorate a function whose calls are ranges; for what is rare enough for one more call."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if not is_on:
                return function(*args, **kwargs)
            with record_function(name):
                return function(*args, **kwargs)

        return call

    return decorate


@contextmanager
def opened() -> Iterator[None]:
    """Name ranges during the block. Blocks may lie in each other.

    It records nothing by itself: that is what ``torch.profiler.profile`` around it or in it does.
    """
    switch_on()
    try:
        yield
    finally:
        switch_off()


def switch_on() -> None:
    """Name ranges until as many calls of `switch_off`."""
    global is_on, _num_open
    _num_open += 1
    is_on = True
    emulator.set_span(record_function)


def switch_off() -> None:
    """Undo one `switch_on`."""
    global is_on, _num_open
    assert _num_open > 0
    _num_open -= 1
    if not _num_open:
        is_on = False
        emulator.set_span(None)
