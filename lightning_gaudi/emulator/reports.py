"""The SDK's metrics: what was compiled, found again, run elsewhere (bridge 1.19.0, `hpu/metrics`).

All metrics of a name read the same counters, which always run; they differ in when they began to
count. The emulator compiles nothing, so a compilation takes 0 microseconds here, and memory is
never defragmented.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning_gaudi.emulator import accounting

Stats = list[tuple[str, Any]]
"""Names and values, in the SDK's order."""

Counts = dict[str, Any]
"""Counters by name: a number, or numbers by a further name."""


class MetricNotFound(Exception):
    """There is no metric of that name."""


def is_set(name: str) -> bool:
    """Whether an environment variable says yes in one of the ways that the SDK's metrics know."""
    return os.environ.get(name, "").lower() in ("y", "yes", "t", "true", "on", "1")


def _graph_compilation() -> Counts:
    cache = accounting.cache
    counts: Counts = {"TotalNumber": cache.num_compilations, "TotalTime": 0, "AvgTime": 0}
    if is_set("PT_HPU_METRICS_GC_DETAILS"):
        counts["recipe"] = cache.misses_by_recipe()
    return counts


def _cpu_fallback() -> Counts:
    ops = dict(accounting.fallbacks)
    return {"TotalNumber": sum(ops.values()), "FallbackOps": ops}


def _memory_defragmentation() -> Counts:
    return {"TotalNumber": 0, "TotalSuccessful": 0, "AvgTime": 0, "MaxTime": 0}


def _recipe_cache() -> Counts:
    cache = accounting.cache
    return {
        "TotalHit": cache.num_hits,
        "RecipeHit": cache.hits_by_recipe(),
        "TotalMiss": cache.num_compilations,
        "RecipeMiss": cache.misses_by_recipe(),
    }


_READERS: dict[str, Callable[[], Counts]] = {
    "graph_compilation": _graph_compilation,
    "cpu_fallback": _cpu_fallback,
    "memory_defragmentation": _memory_defragmentation,
    "recipe_cache": _recipe_cache,
}


def _combine(now: Counts, other: Counts, sign: int) -> Counts:
    """``now + sign * other``; of numbers by a further name, those that are not 0."""
    result: Counts = {}
    for name, value in now.items():
        if isinstance(value, dict):
            part = other.get(name, {})
            sums = {k: value.get(k, 0) + sign * part.get(k, 0) for k in (*value, *part)}
            result[name] = {k: count for k, count in sums.items() if count}
        else:
            result[name] = value + sign * other.get(name, 0)
    return result


class Metric:
    """Counts one thing from `start` to `stop`; a new one has started.

    Args:
        name: Which.
        since: The counters to count from; those of now by default.
    """

    def __init__(self, name: str, since: Counts | None = None) -> None:
        self._name = name
        self._read = _READERS[name]
        self._collected: Counts = {}
        self._since: Counts | None = self._read() if since is None else since

    def name(self) -> str:
        """Its name."""
        return self._name

    def start(self) -> None:
        """Go on counting, where it was stopped."""
        if self._since is None:
            self._since = self._read()

    def stop(self) -> None:
        """Count no further."""
        if self._since is not None:
            self._collected, self._since = self._counts(), None

    def reset(self) -> None:
        """Forget what was counted so far."""
        self._collected = {}
        if self._since is not None:
            self._since = self._read()

    def stats(self) -> Stats:
        """What was counted, as (name, value) tuples in the SDK's order."""
        counts = self._counts()
        if "recipe" in counts:
            counts["recipe"] = [(recipe, 0) for recipe in counts["recipe"]]
        return list(counts.items())

    def _counts(self) -> Counts:
        now = self._read()
        zero = _combine(now, now, -1)
        running = zero if self._since is None else _combine(now, self._since, -1)
        return _combine(running, self._collected, 1)


_global_metrics = {name: Metric(name, since={}) for name in _READERS}


def global_metrics() -> list[Metric]:
    """The metrics of the process, in the order in which the SDK writes them to a file."""
    return list(_global_metrics.values())


def metric_global(name: str) -> Metric | None:
    """The metric of that name over the life of the process; None for an unknown name."""
    return _global_metrics.get(name)


@contextmanager
def metric_localcontext(name: str) -> Iterator[Metric]:
    """A metric that counts within the ``with`` block, and can be read after it.

    Ops that are pending when the block ends are compiled later, and so not counted.

    Raises:
        MetricNotFound: There is no metric of that name.
    """
    if name not in _READERS:
        raise MetricNotFound(f"Metric with given name ({name}) doesn't exist.")
    metric = Metric(name)
    try:
        yield metric
    finally:
        metric.stop()
