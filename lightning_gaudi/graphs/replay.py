"""`GraphedForward`: run a callable once under capture, then replay it.

Three things can happen to a call:

- *capture*, the first time its key is seen: the callable runs on private copies of the inputs under
  capture and guard, and the call's result is already right;
- *replay*, when the key is known: the inputs are given to the graph, and it runs;
- *eager*, where a replay could not be right: gradients are wanted, the arguments hold objects that
  cannot be compared, a submodule has hooks, or a capture failed with ``on_failure="eager"``.

Outputs are cloned, because the next replay overwrites them. Capture and replay run outside
inference mode and without gradients, so that one graph serves both modes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial, update_wrapper
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_gaudi.errors import CaptureError, ConfigurationError
from lightning_gaudi.graphs.captured import CapturedGraph
from lightning_gaudi.graphs.key import Key, describe, modes, read_call, text_of
from lightning_gaudi.graphs.padded_call import Padding, PaddingQuestion, family_of, known_graphs
from lightning_gaudi.graphs.padding import BatchPadding
from lightning_gaudi.graphs.recording import Recorder, check_memory
from lightning_gaudi.graphs.refusals import CannotRerunError, ReplacedWeightError
from lightning_gaudi.graphs.stats import GraphStats
from lightning_gaudi.graphs.structure import UnsupportedValueError
from lightning_gaudi.graphs.warmup import example_call
from lightning_gaudi.graphs.weights import ModuleWatch
from lightning_gaudi.runtime import capture as hpu_capture
from lightning_gaudi.runtime import ranges

OnFailure = Literal["raise", "eager"]


class GraphedForward:
    """A callable that is captured once a key and then replayed as an HPU graph.

    Args:
        fn: The callable, or a module, whose forward is then meant. It must not depend on anything
            but its arguments and the module's weights. What it does besides computing (attributes
            and lists that it changes, ``self.log``, Python's own random numbers) happens at the
            capture only, not at a replay.
        module: The module whose weights `fn` reads, watched for replaced weights, hooks and
            train/eval switches. By default the one that `fn` is a method of, if any.
        name: What messages call it.
        max_graphs: How many graphs are kept; beyond that the least recently used is dropped.
        pad_batch: Whether a batch with fewer rows than a captured one is padded to it and the
            results sliced, where that is right (see `padding`), in place of a capture of its own.
        clone_outputs: Whether results are the caller's own. Without, they are the graph's tensors:
            valid until the next call with the same key, and with `asynchronous` not before the
            device has been waited for or the host has read one of them.
        asynchronous: Whether a call may return before its replay has run; ops on its results wait.
        disable_tensor_cache: Whether graphs read the caller's tensors where they are, and keep no
            memory but that of their outputs. Inputs that are views are copied at each call.
        on_failure: What to do where the callable cannot be captured: ``"raise"`` `CaptureError`,
            or run it op by op (``"eager"``) and say so once.

    Attributes:
        stats: Counts of what happened, and a row for each graph.

    Raises:
        ConfigurationError: An argument has a value that it cannot have.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        module: nn.Module | None = None,
        name: str | None = None,
        max_graphs: int = 16,
        pad_batch: bool = True,
        clone_outputs: bool = True,
        asynchronous: bool = False,
        disable_tensor_cache: bool = False,
        on_failure: OnFailure = "raise",
    ) -> None:
        check_options(max_graphs, on_failure)
        if isinstance(fn, nn.Module):
            name = name or type(fn).__name__
            module, fn = module or fn, fn.forward
        owner = getattr(fn, "__self__", None)
        if module is None and isinstance(owner, nn.Module):
            module = owner
        # Lightning and Transformers look at the signature.
        update_wrapper(self, fn, updated=())
        self.name = name or str(getattr(fn, "__qualname__", type(fn).__name__))
        self.stats = GraphStats()
        self._fn = fn
        self._watch = None if module is None else ModuleWatch(module)
        self._max_graphs = max_graphs
        self._clone_outputs = clone_outputs
        self._asynchronous = asynchronous
        self._recorder = Recorder(
            fn=fn,
            name=self.name,
            binds_inputs=disable_tensor_cache,
            reruns_failures=on_failure == "eager",
        )
        self._graphs: dict[Key, CapturedGraph] = {}
        # The graph to try first: that of the last call of the same family and first shape.
        self._latest: dict[Key, CapturedGraph] = {}
        self._num_uses = 0
        self._postponed: set[Key] = set()
        self._failed = False
        self._said: set[str] = set()
        self._padding: Padding | None = BatchPadding(self.name) if pad_batch else None
        self._is_padded = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the callable: by replay where its key is known, under capture where not.

        Returns:
            What the callable returns. Results that are an argument or a weight are that very
            tensor; all others are the caller's own (see `clone_outputs`), and two that share
            storage when run op by op do not share it here.

        Raises:
            CaptureError: It cannot be captured, and ``on_failure="raise"``.
            Exception: Whatever the callable raises, unchanged.
        """
        # A target inside a target runs inline: one capture at a time (CARD.md 2).
        if hpu_capture.is_capturing():
            return self._fn(*args, **kwargs)
        if self._failed:
            return self._run_eagerly(args, kwargs)
        found = self._look_up(args, kwargs)
        if isinstance(found, str):
            return self._run_eagerly(args, kwargs, found)
        captured, key, inputs = found
        if captured is None:
            return self._answer_new(key, inputs, args, kwargs)
        if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            given = self._run(captured, inputs)
        else:
            given = captured.replay(inputs, self._asynchronous)
        self.stats.replays += 1
        captured.row.replays += 1
        return captured.result(inputs, given, self._clone_outputs)

    @ranges.in_range(ranges.WARMUP)
    def warmup(self, calls: Iterable[Any]) -> None:
        """Capture graphs for calls to come; nothing is computed, and no state changes.

        Args:
            calls: One shape or example call for each graph; what it may be says `example_call`.

        Raises:
            ConfigurationError: A call is none of these.
            CaptureError: It cannot be captured, and ``on_failure="raise"``.
        """
        for spec in calls:
            args, kwargs = example_call(spec)
            with torch.no_grad():
                found = self._look_up(args, kwargs)
            if isinstance(found, str):
                continue  # such calls will run op by op
            captured, key, inputs = found
            try:
                if captured is None:
                    self._capture(key, inputs, args, kwargs, dry_run=True)
            except ReplacedWeightError:
                continue  # its first real call may make a buffer
            except CaptureError as error:
                if not self._accepts_failure(error):
                    raise
                return

    def clear(self) -> None:
        """Drop all graphs and the memory they hold; the next call captures anew.

        Raises:
            CaptureError: A capture is in progress, which this would destroy.
        """
        if hpu_capture.is_capturing():
            raise CaptureError(
                f"cannot drop the graphs of {self.name} now: a capture is in progress, and "
                "destroying any HPU graph would clear it. Do it before or after the capture."
            )
        self._drop_all()
        self._failed = False
        if self._watch is not None:
            self._watch.forget()

    def wraps(self, fn: Callable[..., Any]) -> bool:
        """Whether this is the replay of that callable."""
        return fn == self._fn  # bound methods are made anew at every look, but compare equal

    @property
    def num_graphs(self) -> int:
        """How many graphs are kept now."""
        return len(self._graphs)

    def _look_up(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[CapturedGraph | None, Key, Sequence[Tensor]] | str:
        """The graph for a call, its key, and the device tensors that it takes, each once.

        Returns:
            No graph where there is none yet; a text, maybe empty, where it must run op by op.

        Raises:
            CaptureError: There is a graph, but it would be wrong for arguments that share memory.
        """
        mode = modes()
        is_inference = torch.is_inference_mode_enabled()
        watch = self._watch
        switches = 0
        if watch is not None:
            if watch.has_changed((mode, is_inference)):
                self._drop_all()
                watch.refresh()
            hooked = watch.hooked()
            if hooked is not None:
                return (
                    f"its submodule {hooked} has a forward hook, which a replay would not run. "
                    "Remove the hook"
                )
            switches = watch.switches
        try:
            structure, tensors = read_call(args, kwargs)
            # After the watch has looked: an adapter that wants gradients may have been added.
            if torch.is_grad_enabled() and self._wants_gradients(tensors):
                return ""
            family = (structure, mode, switches)
            # Mostly the first shape tells which graph of a family it is.
            hint = (family, tensors[0].shape if tensors else None)
            captured = self._latest.get(hint)
            if captured is not None and captured.accepts(tensors, is_inference):
                inputs = tensors
            else:
                description, inputs = describe(tensors)
                captured = self._graphs.get((family, description))
                if captured is None:
                    return None, (family, description), inputs
                self._latest[hint] = captured
                captured.hint = hint
                # Learn no call with host values or with a tensor twice: a check cannot see those.
                if len(inputs) == len(tensors) and not captured.accepts(tensors, is_inference):
                    captured.learn(tensors, is_inference)
        except UnsupportedValueError as error:
            return (
                f"among its arguments is {error.what}, whose contents a graph would freeze. Pass "
                "tensors on the device and plain Python values"
            )
        if captured.written or captured.writes_weights:
            try:
                check_memory(self.name, inputs, [] if watch is None else watch.weights())
            except CaptureError as error:
                if not self._accepts_failure(error):
                    raise
                return ""
        self._num_uses = captured.last_used = self._num_uses + 1
        return captured, captured.key, inputs

    def _run(self, captured: CapturedGraph, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            return captured.replay(inputs, self._asynchronous)

    def _answer_new(
        self, key: Key, inputs: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answer a call that has no graph yet."""
        if self._padding is not None and not self._is_padded:
            padded = self._padding(
                PaddingQuestion(
                    args=args,
                    kwargs=kwargs,
                    inputs=inputs,
                    family=family_of(key),
                    graphs=known_graphs(self._graphs.values(), key),
                    run_eagerly=partial(self._fn, *args, **kwargs),
                    call=self._call_padded,
                )
            )
            if padded is not None:
                result = self._call_padded(*padded.args, **padded.kwargs)
                self.stats.padded_calls += 1
                return padded.finish(result)
        try:
            captured = self._capture(key, inputs, args, kwargs)
        except CaptureError as error:
            # A forward may make a buffer when it is first called: let it, and capture the next.
            is_first = isinstance(error, ReplacedWeightError) and key not in self._postponed
            self._postponed.add(key)
            if not (is_first or self._accepts_failure(error)):
                raise
        else:
            given: Sequence[Tensor] | None = captured.buffers
            if given is None:  # in a dry run nothing was computed
                given = self._run(captured, inputs)
            return captured.result(inputs, given, self._clone_outputs)
        return self._run_eagerly(args, kwargs)

    @ranges.in_range(ranges.PADDED_CALL)
    def _call_padded(self, *args: Any, **kwargs: Any) -> Any:
        """Call what padding has put in the place of another call."""
        self._is_padded = True
        try:
            return self(*args, **kwargs)
        finally:
            self._is_padded = False

    def _capture(
        self,
        key: Key,
        inputs: Sequence[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        dry_run: bool = False,
    ) -> CapturedGraph:
        started = time.perf_counter()
        self._make_room()
        hpu_capture.collect_garbage()  # before memory is measured, and not again
        bytes_before = hpu_capture.bytes_in_use()
        captured = self._recorder.record(args, kwargs, inputs, self._watch, dry_run=dry_run)
        family, description = captured.key = key
        if len(inputs) == len(description):
            captured.hint = (family, inputs[0].shape if inputs else None)
            self._latest[captured.hint] = captured
            captured.learn(inputs, torch.is_inference_mode_enabled())
        self._num_uses = captured.last_used = self._num_uses + 1
        self._graphs[key] = captured
        row = captured.row
        row.inputs = text_of(description)
        row.num_bytes = hpu_capture.bytes_in_use() - bytes_before
        row.capture_seconds = time.perf_counter() - started
        self.stats.note_graph(row)
        return captured

    def _make_room(self) -> None:
        """Drop the graphs that were not used for longest: before a capture, never during one."""
        while len(self._graphs) >= self._max_graphs:
            self._drop(min(self._graphs.values(), key=lambda graph: graph.last_used))
            self.stats.evictions += 1
            self._say_once(
                f"{self.name} has been called with more than max_graphs={self._max_graphs} kinds "
                "of arguments, so graphs are dropped and captured again. Fix the shapes (pad to a "
                "few sizes), or raise max_graphs."
            )

    def _drop(self, captured: CapturedGraph) -> None:
        del self._graphs[captured.key]
        if self._latest.get(captured.hint) is captured:
            del self._latest[captured.hint]
        self.stats.forget_graph(captured.row)

    def _drop_all(self) -> None:
        for captured in list(self._graphs.values()):
            self._drop(captured)

    def _wants_gradients(self, tensors: Sequence[Tensor]) -> bool:
        return any(tensor.requires_grad for tensor in tensors) or (
            self._watch is not None and self._watch.requires_grad()
        )

    def _accepts_failure(self, error: CaptureError) -> bool:
        """Whether a target that cannot be captured runs op by op from now on."""
        if self._recorder.reruns_failures and not isinstance(error, CannotRerunError):
            self._failed = True
            self._drop_all()
            self._say_once(f"{error} {self.name} runs op by op from now on.")
            return True
        return False

    def _run_eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any], why: str = "") -> Any:
        if why:
            self._say_once(f"{self.name} runs op by op, not as an HPU graph: {why} to have graphs.")
        self.stats.eager_calls += 1
        return self._fn(*args, **kwargs)

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=4)


def check_options(max_graphs: int, on_failure: str) -> None:
    """Check options of `GraphedForward`.

    Raises:
        ConfigurationError: One has a value that it cannot have.
    """
    if not isinstance(max_graphs, int) or isinstance(max_graphs, bool) or max_graphs < 1:
        raise ConfigurationError(
            f"max_graphs must be a whole number of 1 or more, but it is {max_graphs!r}."
        )
    if on_failure not in ("raise", "eager"):
        raise ConfigurationError(
            f"on_failure must be 'raise' or 'eager', but it is {on_failure!r}."
        )
