"""What replay did: counts for one target, and for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class GraphRow:
    """One graph that is kept.

    Attributes:
        inputs: Shapes and dtypes of its inputs, for the reader.
        capture_seconds: Host time that its capture took, in seconds.
        num_bytes: Device memory that it holds: by how much the memory in use grew around its
            capture. Weights are not in it.
        num_sub_graphs: How many graphs the device makes of it, one more for each flush inside the
            forward; None where the software does not say.
        replays: Calls that it has answered.
    """

    inputs: str = ""
    capture_seconds: float = 0.0
    num_bytes: int = 0
    num_sub_graphs: int | None = None
    replays: int = 0


@dataclass(slots=True)
class GraphStats:
    """Counts of one captured callable since it was made.

    Attributes:
        captures: Graphs captured.
        replays: Calls answered by a replay.
        eager_calls: Calls run op by op.
        padded_calls: Replays of a batch that was padded.
        evictions: Graphs dropped because there were too many.
        capture_seconds: Host time spent in captures, in seconds.
        graph_bytes: Device memory that the graphs hold which are kept now.
        graphs: One row for each of those, the oldest first.
    """

    captures: int = 0
    replays: int = 0
    eager_calls: int = 0
    padded_calls: int = 0
    evictions: int = 0
    capture_seconds: float = 0.0
    graph_bytes: int = 0
    graphs: list[GraphRow] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """All calls: each was a capture, a replay or eager."""
        return self.captures + self.replays + self.eager_calls

    def note_graph(self, row: GraphRow) -> None:
        """A graph was captured."""
        self.captures += 1
        self.capture_seconds += row.capture_seconds
        self.graph_bytes += row.num_bytes
        self.graphs.append(row)

    def forget_graph(self, row: GraphRow) -> None:
        """A graph was dropped."""
        self.graph_bytes -= row.num_bytes
        self.graphs = [other for other in self.graphs if other is not row]

    def add(self, other: GraphStats) -> None:
        """Add the counts of another, and its rows."""
        for each in fields(GraphStats):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def as_dict(self) -> dict[str, Any]:
        """Names and numbers, for loggers; not the rows."""
        return {
            each.name: getattr(self, each.name)
            for each in fields(GraphStats)
            if each.name != "graphs"
        }
