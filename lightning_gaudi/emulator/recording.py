"""`record`: the events of a block, with reasons for compilations if asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lightning_gaudi.emulator import accounting, events
from lightning_gaudi.emulator.events import Event


@contextmanager
def record(*, reasons: bool = False, empty_cache: bool = False) -> Iterator[list[Event]]:
    """Record the events of the ``with`` block, in order, into the list it yields.

    Args:
        reasons: Whether each compilation says what differs from the graphs known before
            (`Event.reason`). Then every op takes a walk over the Python stack.
        empty_cache: Whether the block begins with no recipe known, so that what it compiles does
            not depend on what the process has compiled before.
    """
    with ExitStack() as stack:
        if empty_cache:
            stack.enter_context(accounting.cache.emptied())
        if reasons:
            stack.enter_context(accounting.noting_lines())
        yield stack.enter_context(events.record())


def num_cache_hits() -> int:
    """Graphs found in the recipe cache since the process started."""
    return accounting.cache.num_hits
