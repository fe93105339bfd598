"""The graphs that exist in this process, to say what memory they hold."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakValueDictionary

# By id, since graphs of training compare by what they hold.
_graphs: WeakValueDictionary[int, Any] = WeakValueDictionary()


class Kept(NamedTuple):
    """How many graphs there are.

    Attributes:
        number: Graphs.
        num_bytes: Device memory that they hold, as their rows have it.
    """

    number: int
    num_bytes: int


def note(graph: Any) -> None:
    """A graph, whose ``row`` tells of it, exists until nobody holds it."""
    _graphs[id(graph)] = graph


def kept() -> Kept:
    """The graphs that exist now."""
    rows = [graph.row for graph in _graphs.values()]
    return Kept(len(rows), sum(row.num_bytes for row in rows))
