"""The SDK's metrics: ``metric_global(name).stats()`` gives a list of (name, value) tuples.

Names and shapes of the tuples are the SDK's (``hpu/metrics.py``, bridge 1.19.0). The emulator
compiles nothing, so a compilation takes 0 microseconds here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_gaudi.emulator import accounting

Stats = list[tuple[str, Any]]


def _graph_compilation() -> Stats:
    return [
        ("TotalNumber", accounting.cache.num_compilations),
        ("TotalTime", 0),
        ("AvgTime", 0),
    ]


def _cpu_fallback() -> Stats:
    ops = dict(accounting.fallbacks)
    return [("TotalNumber", sum(ops.values())), ("FallbackOps", ops)]


def _recipe_cache() -> Stats:
    cache = accounting.cache
    return [
        ("TotalHit", cache.num_hits),
        ("RecipeHit", cache.hits_by_recipe()),
        ("TotalMiss", cache.num_compilations),
        ("RecipeMiss", cache.misses_by_recipe()),
    ]


_METRICS: dict[str, Callable[[], Stats]] = {
    "graph_compilation": _graph_compilation,
    "cpu_fallback": _cpu_fallback,
    "recipe_cache": _recipe_cache,
}


class Metric:
    """One metric of the process.

    Attributes:
        name: Its name.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def stats(self) -> Stats:
        """The figures now."""
        return _METRICS[self.name]()


def metric_global(name: str) -> Metric | None:
    """The metric of that name over the life of the process; None for an unknown name."""
    return Metric(name) if name in _METRICS else None
