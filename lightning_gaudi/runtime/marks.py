"""Being told when the emulated HPU has done something."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gaudi.emulator import events

_MOST_EVENTS = 4096


def call_at_marks(function: Callable[[], None]) -> Callable[[], None]:
    """Call a function at each ``mark_step``, and after a few thousand other events.

    Args:
        function: What to call; it may not use the device.

    Returns:
        What ends it.
    """
    num_waiting = 0

    def listen(kind: str) -> None:
        nonlocal num_waiting
        num_waiting += 1
        if kind == "mark_step" or num_waiting >= _MOST_EVENTS:
            num_waiting = 0
            function()

    events.listeners.append(listen)
    return lambda: events.listeners.remove(listen)
