"""What replay did: counts for one target, and for all of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(slots=True)
class GraphStats:
    """Counts of one captured callable since it was made or cleared.

    Attributes:
        captures: Graphs captured.
        replays: Calls answered by a replay.
        eager_calls: Calls run op by op.
        padded_calls: Replays of a batch that was padded.
        evictions: Graphs dropped because there were too many.
        capture_seconds: Host time spent in captures, in seconds.
    """

    captures: int = 0
    replays: int = 0
    eager_calls: int = 0
    padded_calls: int = 0
    evictions: int = 0
    capture_seconds: float = 0.0

    @property
    def calls(self) -> int:
        """All calls: each was a capture, a replay or eager."""
        return self.captures + self.replays + self.eager_calls

    def add(self, other: GraphStats) -> None:
        """Add the counts of another."""
        for field in fields(GraphStats):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def as_dict(self) -> dict[str, Any]:
        """Names and values, for loggers."""
        return {field.name: getattr(self, field.name) for field in fields(GraphStats)}
