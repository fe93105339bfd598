"""Marks, and what waits for them (bridge 1.19.0, ``core/step_closure.py``).

A closure runs after the next mark, in the order in which closures were added; one that a closure
adds waits for the mark after that. Where a closure raises, the error reaches whoever marked, and
the closures behind it stay for the next mark; the SDK forgets them.

In eager mode there is nothing to mark: the functions do nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from lightning_gaudi.emulator import accounting, events, report_files
from lightning_gaudi.emulator.mode import is_lazy

_closures: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()


def add_step_closure(closure: Callable[..., Any], args: tuple[Any, ...] = ()) -> None:
    """Call ``closure(*args)`` after the next mark, when the values of `args` are computed."""
    if is_lazy():
        _closures.append((closure, tuple(args)))


def mark_step(device_str: str = "", sync: bool = False) -> None:
    """Close the pending graph, then run the closures that wait for that.

    Args:
        device_str: Ignored, as a process has one device.
        sync: Whether to wait for the host's part; it is always done here.
    """
    if is_lazy():
        _mark("mark_step")


def iter_mark_step(device_str: str = "") -> None:
    """`mark_step` at the end of an iteration."""
    if is_lazy():
        _mark("iter_mark_step")


def mark_step_if_lazy(device_str: str = "") -> None:
    """`mark_step`, which does nothing in eager mode anyway; the SDK's optimizers call this."""
    mark_step(device_str)


def _mark(cause: str) -> None:
    events.emit("mark_step", cause)
    accounting.flush(cause)
    report_files.on_mark_step()
    # Taken out first: what a closure adds must not run in this round.
    due = deque(_closures)
    _closures.clear()
    try:
        while due:
            closure, args = due.popleft()
            closure(*args)
    finally:
        _closures.extendleft(reversed(due))
