"""``HPUGraph``: capture a run of ops, replay it (``habana_frameworks.torch.hpu.graphs``).

What would abort, hang or answer wrongly on a card raises `GraphCaptureError` here.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterable, Sequence
from types import TracebackType

from torch import Tensor

from lightning_gaudi.emulator import accounting, capture, events, lowering, poison, streams
from lightning_gaudi.emulator.capture import Program
from lightning_gaudi.emulator.errors import GraphCaptureError
from lightning_gaudi.emulator.marked_inputs import MarkedInputs
from lightning_gaudi.emulator.memory import Block
from lightning_gaudi.emulator.streams import Stream
from lightning_gaudi.emulator.strict import is_strict
from lightning_gaudi.emulator.tensor import HPUTensor, block_of


class HPUGraph:
    """A captured run of ops.

    The ops between `capture_begin` and `capture_end` execute and are written down. `replay` runs
    them again: it reads the tensors that they read and refreshes the tensors that they made.

    To keep less memory in use: `mark_user_inputs` during the capture, `mark_user_outputs` after
    it, and `replayV3` instead of `replay`. Then the graph reads the tensors that each replay is
    given, and what lies between inputs and outputs is freed.
    """

    def __init__(self) -> None:
        self._program: Program | None = None
        self._is_capturing = False
        self._stream: Stream | None = None
        self._forget()

    def _forget(self) -> None:
        self._inputs: MarkedInputs | None = None
        self._has_outputs = False
        # What mark_user_outputs has freed, with a plain tensor on all of its storage.
        self._freed: list[tuple[weakref.ref[Block], Tensor]] = []
        self._clearable: set[Block] = set()
        self._has_cleared = False

    def capture_begin(self, dry_run: bool = False) -> None:
        """Start the capture. Pending ops are flushed first.

        Args:
            dry_run: Whether ops only say what shape and dtype their results have. Here they do
                compute; at `capture_end` their results are filled with NaN, and what they wrote to
                memory from before, and the random generators, are put back.

        Raises:
            GraphCaptureError: Another capture is in progress.
        """
        if capture.current is not None:
            raise GraphCaptureError(
                "capture_begin: another capture is in progress, and a nested one aborts the "
                "process on a card. End the outer one first, or run the inner forward inline."
            )
        accounting.flush("capture_begin")
        self._forget()
        self._stream = streams.current_stream()
        self._program = capture.current = Program(is_dry_run=dry_run)
        self._is_capturing = True
        events.emit("capture_begin", "capture_begin", "dry run" if dry_run else "")

    def capture_end(self) -> None:
        """End the capture.

        Raises:
            GraphCaptureError: This graph is not capturing, its capture was destroyed, or the
                current stream is not the one that it began on; only then it goes on.
        """
        program = self._program
        if not self._is_capturing or program is None or capture.current is not program:
            raise GraphCaptureError("capture_end: this graph has no capture in progress.")
        if streams.current_stream() != self._stream:
            raise GraphCaptureError(
                f"capture_end: the capture began on {self._stream} and ends on "
                f"{streams.current_stream()}, which aborts the process on a card (CARD.md 2). End "
                "it on the stream that it began on."
            )
        accounting.flush("capture_end")
        capture.current = None
        self._is_capturing = False
        detail = f"{len(program.steps)} ops in {program.num_sub_graphs} sub-graphs"
        # A forward that has raised will not be replayed; if it is after all, it is compiled then.
        if program.records is not None and sys.exc_info()[0] is None:
            detail += lowering.lower(program, is_bound=self._inputs is not None)
        events.emit("capture_end", "capture_end", detail)
        if program.is_dry_run:
            program.end_dry_run()
        if program.broken:
            self._program = None
            raise GraphCaptureError(program.broken)
        if self._inputs is not None:
            self._inputs.seal(program)
        if is_strict():
            _poison_unseen(program)

    def mark_user_inputs(self, static_tlist: Sequence[Tensor]) -> None:
        """Say which tensors each replay will give anew, by position; during the capture.

        Raises:
            GraphCaptureError: This graph is not capturing, or its inputs are marked already.
        """
        if not self._is_capturing or capture.current is not self._program:
            raise GraphCaptureError(
                "mark_user_inputs: this graph has no capture in progress. Inputs are marked "
                "between capture_begin and capture_end; a card aborts the process otherwise."
            )
        if self._inputs is not None:
            raise GraphCaptureError(
                "mark_user_inputs: called for the second time in this capture. A card keeps the "
                "second list, but compares a replay's sizes with both."
            )
        self._inputs = MarkedInputs(list(static_tlist))

    def mark_user_outputs(self, static_tlist: Iterable[Tensor]) -> None:
        """Say which tensors replays must refresh; once, after the capture.

        What else the graph has made is freed: it is filled with NaN now and after each replay, and
        no longer counts as memory in use. Tensors that are not the graph's are ignored.

        Raises:
            GraphCaptureError: The capture is in progress or was none, or outputs were marked.
        """
        if self._is_capturing:
            raise GraphCaptureError(
                "mark_user_outputs: the capture is in progress, and a card aborts the process. "
                "Call it after capture_end."
            )
        program = self._captured("mark_user_outputs")
        if self._has_outputs:
            raise GraphCaptureError(
                "mark_user_outputs: called for the second time for this capture, which a card "
                "refuses. Give all outputs at once."
            )
        self._has_outputs = True
        outputs = [tensor for tensor in static_tlist if type(tensor) is HPUTensor]
        kept = {block_of(output) for output in outputs}
        for block, plain in list(program.private.items()):
            if block not in kept:
                self._freed.append((weakref.ref(block), poison.storage_of(plain)))
                del program.private[block]
                program.blocks.discard(block)
        if self._inputs is not None:
            self._inputs.note_outputs(outputs)
        self._clearable = program.written - kept
        for _, flat in self._freed:
            poison.fill(flat)

    def get_user_input_match_indices(self) -> set[int]:
        """Places of the marked inputs that the graph reads, and so binds at each `replayV3`."""
        return set() if self._inputs is None else set(self._inputs.matched)

    def replay(self, asynchronous: bool = False) -> None:
        """Run the captured ops again, on the same tensors.

        Args:
            asynchronous: Whether the card may return early; the same thing here.

        Raises:
            GraphCaptureError: Nothing was captured, a capture is in progress, or inputs were
                marked for `replayV3`.
        """
        program = self._captured("replay")
        if self._inputs is not None and self._inputs.matched:
            raise GraphCaptureError(
                "replay: inputs were marked, and a graph does not keep those: a card finds none to "
                "read. Use replayV3 and pass them."
            )
        self._run(program, "replay")

    def replayV3(self, tlistI: Sequence[Tensor], asynchronous: bool = False) -> None:
        """Run the captured ops again, on the tensors given for the marked inputs.

        Args:
            tlistI: One for each tensor that was marked, in that order, with its shape and dtype.
                They are read where they are, and written to where the captured ops did.
            asynchronous: Whether the card may return early; the same thing here.

        Raises:
            GraphCaptureError: Nothing was captured, a capture is in progress, no inputs were
                marked, or the tensors do not fit.
        """
        program = self._captured("replayV3")
        if self._inputs is None:
            raise GraphCaptureError(
                "replayV3: no inputs were marked, so a card would ignore the ones that are given. "
                "Call mark_user_inputs between capture_begin and capture_end, or use replay."
            )
        self._inputs.check(tlistI)
        self._inputs.bind(tlistI)
        try:
            self._run(program, "replayV3")
        finally:
            self._inputs.release()

    def _captured(self, caller: str) -> Program:
        """The program, where there is one to use.

        Raises:
            GraphCaptureError: There is none, or a capture is in progress.
        """
        if capture.current is not None:
            raise GraphCaptureError(
                f"{caller}: a capture is in progress, and a replay inside it aborts the process "
                "on a card. End the capture first."
            )
        if self._program is None:
            raise GraphCaptureError(f"{caller}: nothing was captured. Call capture_begin first.")
        return self._program

    def _run(self, program: Program, cause: str) -> None:
        if self._has_cleared:
            raise GraphCaptureError(
                f"{cause}: clear_inputs has dropped tensors that the graph reads and writes, and a "
                "card finds no memory there. Mark them as inputs, or capture again."
            )
        accounting.flush(cause)
        events.emit("replay", cause)
        if program.records is not None:
            lowering.lower(program, is_bound=self._inputs is not None)
        program.run()
        for block, flat in self._freed:
            # What no tensor looks at needs no poison, unless something is to be proved by it.
            if block() is not None or is_strict():
                poison.fill(flat)
        if is_strict():
            _poison_unseen(program)

    def clear_inputs(self) -> None:
        """Drop the tensors from outside that the graph writes to and that are no output.

        They are known after `mark_user_outputs`; before it nothing happens, as in the bridge.
        Those among the marked inputs are given anew by `replayV3`; after any other is dropped the
        graph cannot replay.
        """
        program = self._program
        if program is None or not self._has_outputs:
            return
        self._has_cleared |= bool(self._clearable)
        program.blocks -= self._clearable
        program.written -= self._clearable
        self._clearable = set()

    def reset(self) -> None:
        """Drop the captured ops and the memory they hold.

        Raises:
            GraphCaptureError: A capture is in progress, which this would clear on a card.
        """
        if capture.current is not None:
            raise GraphCaptureError(
                "reset: a capture is in progress, and destroying any graph clears it on a card "
                "(CARD.md 1). End the capture first."
            )
        self._program = None
        self._forget()

    def __del__(self) -> None:
        # Bridge sources: the destructor of any graph clears the capture in progress (CARD.md 1).
        if capture.current is None:
            return
        if capture.current is self._program:
            capture.current = None
            if self._program.is_dry_run:
                self._program.end_dry_run()
            return
        capture.current.broken = (
            "an HPUGraph was destroyed during the capture, by hand or by the garbage collector, "
            "which clears the capture on a card. Drop graphs and run gc.collect() before "
            "capture_begin, and let no garbage be collected until capture_end (CARD.md 1)."
        )


class graph:
    """Capture the ``with`` block into a graph; an exception in the block ends the capture too.

    Args:
        hpu_graph: The graph.
        stream: The stream that the block runs on; by default one that all these blocks share.
        dry_run: As for `HPUGraph.capture_begin`.
    """

    default_capture_stream: Stream | None = None

    def __init__(
        self, hpu_graph: HPUGraph, stream: Stream | None = None, dry_run: bool = False
    ) -> None:
        if stream is None:
            if graph.default_capture_stream is None:
                graph.default_capture_stream = Stream()
            stream = graph.default_capture_stream
        self.capture_stream = stream
        self.hpu_graph = hpu_graph
        self.dry_run = dry_run
        self._context = streams.stream(stream)

    def __enter__(self) -> None:
        accounting.flush("synchronize")
        gc.collect()
        self._context.__enter__()
        try:
            self.hpu_graph.capture_begin(self.dry_run)
        except BaseException:
            self._context.__exit__()
            raise
        _capturing_streams.add(self.capture_stream.id())

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.hpu_graph.capture_end()
        finally:
            _capturing_streams.discard(self.capture_stream.id())
            self._context.__exit__(exc_type, exc_value, traceback)


_capturing_streams: set[int] = set()


def is_current_stream_capturing() -> bool:
    """Whether the current stream is that of a `graph` block.

    `HPUGraph.capture_begin` alone does not make it so (bridge 1.19.0, ``hpu/graphs.py``: the mark
    is set by ``graph.__enter__``).
    """
    return streams.current_stream().id() in _capturing_streams


def _poison_unseen(program: Program) -> None:
    """Fill private memory that no tensor looks at, so that nothing can come to rely on it."""
    for block, count in zip(program.private, _count_references(program.private), strict=True):
        if count == _NUM_OWN_REFERENCES:
            poison.fill(poison.storage_of(program.private[block]))


def _count_references(keys: Iterable[object]) -> list[int]:
    return [sys.getrefcount(key) for key in keys]


def _count_own_references() -> int:
    """What `_count_references` says of a block that only a program holds: a set and a dict."""
    key = object()
    held = ({key}, {key: None})
    del key
    return _count_references(held[1])[0]


_NUM_OWN_REFERENCES = _count_own_references()
