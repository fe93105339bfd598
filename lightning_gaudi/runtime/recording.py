"""What the device was made to do since the last look: compilations, host reads and the rest.

On the emulated HPU each thing comes with its cause and the user's source line. A card says how
often it compiled, found a recipe and fell back to the CPU; host reads it does not count, so there
a dispatch mode does, if asked for (see `host_reads`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from typing import Any

from lightning_gaudi import emulator
from lightning_gaudi.emulator import Event, Reason, ShapeChange
from lightning_gaudi.runtime import loading, metrics
from lightning_gaudi.runtime.host_reads import recorded_host_reads

__all__ = ["Counts", "Event", "Reason", "Recording", "ShapeChange", "Taken", "open_recording"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How often each thing happened. What the software does not tell is 0 here.

    Attributes:
        compilations: Graphs compiled.
        cache_hits: Graphs found in the recipe cache.
        host_reads: Times the host waited for a device value.
        host_copies: Copies of device tensors to the host.
        cpu_fallbacks: Ops that ran on the CPU for want of a kernel.
        captures: HPU graphs captured.
        replays: HPU graphs replayed.
    """

    compilations: int = 0
    cache_hits: int = 0
    host_reads: int = 0
    host_copies: int = 0
    cpu_fallbacks: int = 0
    captures: int = 0
    replays: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(
            compilations=self.compilations + other.compilations,
            cache_hits=self.cache_hits + other.cache_hits,
            host_reads=self.host_reads + other.host_reads,
            host_copies=self.host_copies + other.host_copies,
            cpu_fallbacks=self.cpu_fallbacks + other.cpu_fallbacks,
            captures=self.captures + other.captures,
            replays=self.replays + other.replays,
        )

    def __bool__(self) -> bool:
        """Whether anything happened."""
        return any(astuple(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What happened between two looks.

    Attributes:
        counts: How often.
        events: One by one, those of interest, as far as the software tells.
    """

    counts: Counts
    events: tuple[Event, ...] = ()


class Recording:
    """An open record. Close it, or it costs to the end of the process.

    Attributes:
        has_lines: Whether compilations come with reasons and source lines.
        has_host_reads: Whether host reads are seen.
    """

    has_lines = False
    has_host_reads = False

    def take(self) -> Taken:
        """What has happened since the last call, or since the record was opened."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop recording. Again, it does nothing."""
        raise NotImplementedError


_OF_INTEREST = frozenset({"compile", "host_read", "d2h", "cpu_fallback"})


class _EmulatedRecording(Recording):
    has_lines = True
    has_host_reads = True

    def __init__(self, *, empty_cache: bool) -> None:
        self._stack = ExitStack()
        record = emulator.record(reasons=True, empty_cache=empty_cache)
        self._events = self._stack.enter_context(record)
        self._hits = emulator.num_cache_hits()

    def take(self) -> Taken:
        events = tuple(self._events)
        self._events.clear()  # or a long run would hold every event of it
        hits, self._hits = self._hits, emulator.num_cache_hits()
        kinds = Counter([event.kind for event in events])
        return Taken(
            counts=Counts(
                compilations=kinds["compile"],
                cache_hits=self._hits - hits,
                host_reads=kinds["host_read"],
                host_copies=kinds["d2h"],
                cpu_fallbacks=kinds["cpu_fallback"],
                captures=kinds["capture_end"],
                replays=kinds["replay"],
            ),
            events=tuple([event for event in events if event.kind in _OF_INTEREST]),
        )

    def close(self) -> None:
        self._stack.close()


class _CardRecording(Recording):
    def __init__(self, *, host_reads: bool) -> None:
        self.has_host_reads = host_reads
        self._stack = ExitStack()
        self._reads = self._stack.enter_context(recorded_host_reads()) if host_reads else []
        self._before = metrics.counters()
        self._ops_before = metrics.cpu_fallback_ops()

    def take(self) -> Taken:
        now = metrics.counters()
        counted = now - self._before
        self._before = now
        events = tuple(self._reads)
        self._reads.clear()
        kinds: Counter[Any] = Counter([event.kind for event in events])
        return Taken(
            counts=Counts(
                compilations=counted.compilations,
                cache_hits=counted.cache_hits or 0,
                host_reads=kinds["host_read"],
                host_copies=kinds["d2h"],
                cpu_fallbacks=counted.cpu_fallbacks,
            ),
            events=(*events, *self._without_lines(counted)),
        )

    def _without_lines(self, counted: metrics.Counters) -> Iterator[Event]:
        """What a card counts without saying where it came from."""
        for _ in range(counted.compilations):
            yield Event(kind="compile", cause="", line="")
        if not counted.cpu_fallbacks:
            return
        before, self._ops_before = self._ops_before, metrics.cpu_fallback_ops()
        for name, count in self._ops_before.items():
            for _ in range(count - before.get(name, 0)):
                yield Event(kind="cpu_fallback", cause=name, line="")

    def close(self) -> None:
        self._stack.close()


def open_recording(*, host_reads: bool = False, empty_cache: bool = False) -> Recording:
    """Begin to watch the device; the Gaudi software must be loaded, or the emulator be there.

    Args:
        host_reads: On a card, whether a dispatch mode looks for host reads. The emulated HPU
            always counts them.
        empty_cache: On the emulated HPU, whether no recipe is known at first, so that counts do
            not depend on what the process has compiled before.

    Returns:
        The open record.
    """
    if loading.is_emulated():
        return _EmulatedRecording(empty_cache=empty_cache)
    return _CardRecording(host_reads=host_reads)
