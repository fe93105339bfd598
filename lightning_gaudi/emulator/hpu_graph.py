"""``HPUGraph``: capture a run of ops, replay it (``habana_frameworks.torch.hpu.graphs``).

What would abort, hang or answer wrongly on a card raises `GraphCaptureError` here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_gaudi.emulator import accounting, capture, events
from lightning_gaudi.emulator.errors import GraphCaptureError


class HPUGraph:
    """A captured run of ops.

    The ops between `capture_begin` and `capture_end` execute and are written down. `replay` runs
    them again: it reads the tensors that they read and refreshes the tensors that they made.
    """

    def __init__(self) -> None:
        self._program: capture.Program | None = None
        self._is_capturing = False

    def capture_begin(self) -> None:
        """Start the capture. Pending ops are flushed first.

        Raises:
            GraphCaptureError: Another capture is in progress.
        """
        if capture.current is not None:
            raise GraphCaptureError(
                "capture_begin: another capture is in progress, and a nested one aborts the "
                "process on a card. End the outer one first, or run the inner forward inline."
            )
        accounting.flush("capture_begin")
        self._program = capture.current = capture.Program()
        self._is_capturing = True
        events.emit("capture_begin", "capture_begin")

    def capture_end(self) -> None:
        """End the capture.

        Raises:
            GraphCaptureError: This graph is not capturing, or its capture was destroyed.
        """
        if not self._is_capturing or capture.current is not self._program:
            raise GraphCaptureError("capture_end: this graph has no capture in progress.")
        assert self._program is not None
        accounting.flush("capture_end")
        capture.current = None
        self._is_capturing = False
        events.emit("capture_end", "capture_end")
        if self._program.broken:
            reason, self._program = self._program.broken, None
            raise GraphCaptureError(reason)

    def replay(self, asynchronous: bool = False) -> None:
        """Run the captured ops again, on the same tensors.

        Args:
            asynchronous: Whether the card may return early; the same thing here.

        Raises:
            GraphCaptureError: Nothing was captured, or a capture is in progress.
        """
        if capture.current is not None:
            raise GraphCaptureError(
                "replay: a capture is in progress, and a replay inside it aborts the process on a "
                "card. End the capture first."
            )
        if self._program is None:
            raise GraphCaptureError("replay: nothing was captured. Call capture_begin first.")
        accounting.flush("replay")
        events.emit("replay", "replay")
        self._program.run()

    def reset(self) -> None:
        """Drop the captured ops and the memory they hold."""
        self._program = None

    def __del__(self) -> None:
        # Bridge sources: the destructor of any graph clears the capture in progress (CARD.md 1).
        if capture.current is not None and capture.current is not self._program:
            capture.current.broken = (
                "an HPUGraph was destroyed during the capture, which clears the capture on a card. "
                "Drop graphs and run gc.collect() before capture_begin."
            )


@contextmanager
def graph(hpu_graph: HPUGraph) -> Iterator[None]:
    """Capture the block into `hpu_graph`; an exception in the block ends the capture too."""
    hpu_graph.capture_begin()
    try:
        yield
    finally:
        hpu_graph.capture_end()


def is_current_stream_capturing() -> bool:
    """Whether a capture is in progress."""
    return capture.current is not None
