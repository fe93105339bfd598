"""What the emulated HPU did, in order: counters that always run, and a record on request.

A record costs a walk over the Python stack for every event, so it is opt-in::

    with record() as events:
        trainer.fit(module)
    assert [event.kind for event in events if event.kind == "compile"] == []
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_gaudi.emulator.compile_reasons import Reason
from lightning_gaudi.emulator.source import locate, spell

EventKind = Literal[
    "mark_step",
    "flush",
    "compile",
    "capture_begin",
    "capture_end",
    "replay",
    "host_read",
    "h2d",
    "d2h",
    "cpu_fallback",
]
EVENT_KINDS: tuple[str, ...] = get_args(EventKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that the emulated HPU did.

    Attributes:
        kind: What happened.
        cause: Why: the op, the call, or what forced the flush.
        line: The user's source line, ``"path:number"``.
        detail: More where there is more to say: the shapes that a compilation was for.
        library: The library's line, where no line of the user asked for it (a Trainer's progress
            bar, its optimizer step); else empty.
        via: The innermost line of a library that the user's line called, and that did it; else
            empty.
        reason: Why a compilation was needed, in a record that asks for reasons.
    """

    kind: EventKind
    cause: str
    line: str
    detail: str = ""
    library: str = ""
    via: str = ""
    reason: Reason | None = None


counts: dict[str, int] = dict.fromkeys(EVENT_KINDS, 0)
"""The counters; never reset."""

_records: list[list[Event]] = []

listeners: list[Callable[[EventKind], None]] = []
"""What is called with the kind of every event, after it has been recorded."""

Span = Callable[[str], AbstractContextManager[Any]]
span: Span | None = None
"""What opens a range around a flush, by its name, while somebody profiles."""


def set_span(value: Span | None) -> None:
    """Open such a range around every flush from now on; none with None."""
    global span
    span = value


def is_recording() -> bool:
    """Whether somebody listens, so that details are worth computing."""
    return bool(_records)


def emit(kind: EventKind, cause: str, detail: str = "", reason: Reason | None = None) -> None:
    """Count an event and, where a record is open, append it there."""
    counts[kind] += 1
    if _records:
        place = spell(locate())
        event = Event(
            kind=kind,
            cause=cause,
            line=place.line,
            detail=detail,
            library=place.library,
            via=place.via,
            reason=reason,
        )
        for record_ in _records:
            record_.append(event)
    for listener in listeners:
        listener(kind)


def event_counts() -> dict[str, int]:
    """How often each kind of event has happened in this process so far."""
    return dict(counts)


@contextmanager
def record() -> Iterator[list[Event]]:
    """Record the events of the ``with`` block, in order, into the list it yields."""
    events: list[Event] = []
    _records.append(events)
    try:
        yield events
    finally:
        # By identity: two open records with equal contents are equal lists.
        _records[:] = [other for other in _records if other is not events]
