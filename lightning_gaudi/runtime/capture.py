"""Graph primitives: make an HPU graph, capture into it. Lazy mode only."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lightning_gaudi.errors import CaptureError
from lightning_gaudi.runtime import loading, metrics, ranges

_is_capturing = False
# The SDK's own question, once it can be asked: a call asks before every replay.
_is_stream_capturing: Callable[[], bool] | None = None


class Graph(Protocol):
    """What of the SDK's ``HPUGraph`` we use."""

    def capture_begin(self, dry_run: bool = False) -> None:
        """Start writing down what runs; in a dry run nothing is computed."""

    def capture_end(self) -> None:
        """Stop writing down."""

    def replay(self, asynchronous: bool = False) -> None:
        """Run what was written down again."""

    def mark_user_inputs(self, static_tlist: Sequence[Tensor]) -> None:
        """Say, during the capture, which tensors each `replayV3` gives anew."""

    def mark_user_outputs(self, static_tlist: Sequence[Tensor]) -> None:
        """Say, after the capture, which tensors replays refresh; the rest is freed."""

    def replayV3(self, tlistI: Sequence[Tensor], asynchronous: bool = False) -> None:
        """Run what was written down again, on these tensors in place of the marked ones."""


@dataclass
class CaptureReport:
    """What is known of a capture once it has ended.

    Attributes:
        num_sub_graphs: How many graphs flushes have made of it, as the metrics count them; None
            where they do not.
    """

    num_sub_graphs: int | None = None


def is_supported() -> bool:
    """Whether HPU graphs exist in this process: the software is loaded, in lazy mode."""
    return loading.is_loaded() and loading.is_lazy()


def new_graph() -> Graph:
    """A new, empty HPU graph.

    Raises:
        CaptureError: There are no HPU graphs in this process.
    """
    if not is_supported():
        raise CaptureError(
            "HPU graphs exist in lazy mode only, and the Gaudi software "
            + ("runs in eager mode." if loading.is_loaded() else "is not loaded.")
            + " Use GaudiStrategy(mode='lazy')."
        )
    graph: Graph = loading.module("torch.hpu").HPUGraph()
    return graph


def is_capturing() -> bool:
    """Whether a capture is in progress in this process."""
    global _is_stream_capturing
    if _is_capturing:
        return True
    if _is_stream_capturing is None:
        if not is_supported():
            return False
        # The mode is fixed once the software is loaded, so this need not be asked again.
        _is_stream_capturing = loading.module("torch.hpu.graphs").is_current_stream_capturing
    # The SDK marks a stream only in its own ``with graph(...)`` (1.19.0, ``hpu/graphs.py``).
    return bool(_is_stream_capturing())


@contextmanager
def capture(
    graph: Graph, *, dry_run: bool = False, is_collected: bool = False
) -> Iterator[CaptureReport]:
    """Capture the block into a graph; the capture ends whatever the block does.

    Destroying any HPUGraph clears a capture in progress (bridge sources, ``HPUGraph.cpp``), so
    garbage is collected before and not during.

    Args:
        graph: An empty graph.
        dry_run: Whether ops only say what shape and dtype their results have; values come with
            the first replay.
        is_collected: Whether the caller has just collected garbage.
    """
    with (
        ranges.named(ranges.CAPTURE) if ranges.is_on else nullcontext(),
        _capture(graph, dry_run, is_collected) as report,
    ):
        yield report


@contextmanager
def _capture(graph: Graph, dry_run: bool, is_collected: bool) -> Iterator[CaptureReport]:
    global _is_capturing
    if not is_collected:
        collect_garbage()
    was_enabled, was_capturing = gc.isenabled(), _is_capturing
    gc.disable()
    report = CaptureReport()
    try:
        graph.capture_begin(dry_run)
        before = metrics.counters()
        _is_capturing = True
        try:
            yield report
        except BaseException:
            # The user's exception is the one to see, whatever the broken capture says.
            with suppress(Exception):
                graph.capture_end()
            raise
        graph.capture_end()
        flushed = metrics.counters() - before
        if flushed.cache_hits is not None:
            report.num_sub_graphs = flushed.compilations + flushed.cache_hits
    finally:
        _is_capturing = was_capturing
        if was_enabled:
            gc.enable()


def collect_garbage() -> None:
    """Destroy graphs that only garbage still holds, before a capture which that would clear."""
    gc.collect()


def bytes_in_use() -> int:
    """Device memory in use now, in bytes; 0 where the software does not say."""
    stats: dict[str, Any] = loading.module("torch.hpu").memory_stats()
    return int(stats.get("InUse", 0))
