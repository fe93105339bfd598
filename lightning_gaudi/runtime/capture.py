"""Graph primitives: make an HPU graph, capture into it. Lazy mode only."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from lightning_gaudi.errors import CaptureError
from lightning_gaudi.runtime import loading

_is_capturing = False


class Graph(Protocol):
    """What of the SDK's ``HPUGraph`` we use."""

    def capture_begin(self) -> None:
        """Start writing down what runs."""

    def capture_end(self) -> None:
        """Stop writing down."""

    def replay(self, asynchronous: bool = False) -> None:
        """Run what was written down again."""


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
    if not is_supported():
        return False
    # The SDK marks a stream only in its own ``with graph(...)`` (1.19.0, ``hpu/graphs.py``).
    return _is_capturing or bool(_graphs().is_current_stream_capturing())


@contextmanager
def capture(graph: Graph) -> Iterator[None]:
    """Capture the block into a graph; the capture ends whatever the block does.

    Destroying any HPUGraph clears a capture in progress (bridge sources, ``HPUGraph.cpp``), so
    garbage is collected before and not during.
    """
    global _is_capturing
    gc.collect()
    was_enabled, was_capturing = gc.isenabled(), _is_capturing
    gc.disable()
    try:
        graph.capture_begin()
        _is_capturing = True
        try:
            yield
        except BaseException:
            # The user's exception is the one to see, whatever the broken capture says.
            with suppress(Exception):
                graph.capture_end()
            raise
        graph.capture_end()
    finally:
        _is_capturing = was_capturing
        if was_enabled:
            gc.enable()


def _graphs() -> Any:
    return loading.module("torch.hpu.graphs")
