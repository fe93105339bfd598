"""`GraphedForward`: run a callable once under capture, then replay it.

Three things can happen to a call:

- *capture*, the first time its key is seen: the inputs are copied to private buffers, the callable
  runs on those under capture and guard, and its result is already right;
- *replay*, when the key is known: the inputs are copied into the buffers and the graph runs;
- *eager*, where a replay could not be right: gradients are wanted, the arguments hold objects that
  cannot be compared, a submodule has hooks, or a capture failed with ``on_failure="eager"``.

Outputs are cloned, because the next replay overwrites them. Capture and replay run outside
inference mode and without gradients, so that one graph serves both modes.
"""

from __future__ import annotations

import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_gaudi.errors import CaptureError, ConfigurationError
from lightning_gaudi.graphs.guard import CaptureGuard
from lightning_gaudi.graphs.key import Key, key_of
from lightning_gaudi.graphs.stats import GraphStats
from lightning_gaudi.graphs.structure import UnsupportedValueError, flatten, rebuild
from lightning_gaudi.graphs.weights import ModuleWatch
from lightning_gaudi.runtime import capture as hpu_capture

OnFailure = Literal["raise", "eager"]


# What the bridge says where an op without a kernel runs under capture (HABANA.md, "HPU graphs").
_FALLBACK_TEXT = "cpu fallback is not supported during hpu graph capturing"


class _CannotRerunError(CaptureError):
    """A capture failed, and running the callable once more would not be right either."""


class _CapturedGraph:
    """One graph with the buffers that it reads and writes.

    Attributes:
        graph: The HPU graph.
        inputs: Private input buffers; a replay reads them.
        output: What the callable returned; a replay refreshes its tensors.
        output_tensors: The tensors of `output`, in order.
        sources: For each of them where a result comes from that must not be cloned: the place of
            the input that it is, or the weight that it is; None for a result of the graph.
        written: Places of inputs that the callable writes to.
    """

    __slots__ = ("graph", "inputs", "output", "output_tensors", "sources", "written")

    def __init__(
        self,
        graph: hpu_capture.Graph,
        inputs: list[Tensor],
        output: Any,
        weights: set[int],
        written: list[int],
    ) -> None:
        self.graph = graph
        self.inputs = inputs
        self.output = output
        self.output_tensors: list[Tensor] = []
        flatten(output, self.output_tensors)
        self.written = written
        places = {id(tensor): place for place, tensor in enumerate(inputs)}
        self.sources: list[int | Tensor | None] = [
            tensor if id(tensor) in weights else places.get(id(tensor))
            for tensor in self.output_tensors
        ]


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
        clone_outputs: Whether results are the caller's own. Without, they are valid until the next
            call with the same key.
        on_failure: What to do where the callable cannot be captured: ``"raise"`` `CaptureError`,
            or run it op by op (``"eager"``) and say so once.

    Attributes:
        stats: Counts of what happened.

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
        clone_outputs: bool = True,
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
        self._on_failure = on_failure
        self._graphs: OrderedDict[Key, _CapturedGraph] = OrderedDict()
        self._failed = False
        self._said: set[str] = set()

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
        try:
            key, inputs = key_of(args, kwargs)
        except UnsupportedValueError as error:
            return self._give_up_on_call(
                f"among its arguments is {error.what}, whose contents a graph would freeze. Pass "
                "tensors on the device and plain Python values",
                args,
                kwargs,
            )
        watch = self._watch
        if torch.is_grad_enabled() and (
            any(tensor.requires_grad for tensor in inputs)
            or (watch is not None and watch.requires_grad())
        ):
            return self._run_eagerly(args, kwargs)
        if watch is not None:
            if watch.has_changed():
                self._graphs.clear()
                watch.refresh()
            hooked = watch.hooked()
            if hooked is not None:
                return self._give_up_on_call(
                    f"its submodule {hooked} has a forward hook, which a replay would not run. "
                    "Remove the hook",
                    args,
                    kwargs,
                )
            key = (*key, watch.switches())
        captured = self._graphs.get(key)
        if captured is None:
            return self._capture(key, inputs, args, kwargs)
        self._graphs.move_to_end(key)
        with torch.inference_mode(False), torch.no_grad():
            if inputs:
                torch._foreach_copy_(captured.inputs, inputs)
            captured.graph.replay()
        self.stats.replays += 1
        return self._finish(captured, inputs)

    def clear(self) -> None:
        """Drop all graphs and the memory they hold; the next call captures anew."""
        self._graphs.clear()
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

    def _capture(
        self, key: Key, inputs: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        started = time.perf_counter()
        self._make_room()
        try:
            captured = self._record(inputs, args, kwargs)
        except CaptureError as error:
            if self._on_failure == "raise" or isinstance(error, _CannotRerunError):
                raise
            self._failed = True
            self._say_once(f"{error} {self.name} runs op by op from now on.")
            return self._run_eagerly(args, kwargs)
        self._graphs[key] = captured
        self.stats.captures += 1
        self.stats.capture_seconds += time.perf_counter() - started
        return self._finish(captured, inputs)

    def _record(
        self, inputs: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _CapturedGraph:
        graph = hpu_capture.new_graph()
        with torch.inference_mode(False), torch.no_grad(), _no_autocast_cache():
            buffers = [_buffer_like(tensor) for tensor in inputs]
            if inputs:
                torch._foreach_copy_(buffers, inputs)
            found: list[Tensor] = []
            flatten((args, kwargs), found)
            by_id = {id(tensor): buffer for tensor, buffer in zip(inputs, buffers, strict=True)}
            host_arguments = [tensor for tensor in found if id(tensor) not in by_id]
            static_args, static_kwargs = rebuild(
                (args, kwargs), iter([by_id.get(id(tensor), tensor) for tensor in found])
            )
            weights = [] if self._watch is None else self._watch.weights()
            guard = CaptureGuard(self.name, buffers, weights, host_arguments)
            try:
                with hpu_capture.capture(graph), guard:
                    output = self._fn(*static_args, **static_kwargs)
                self._check_captured(guard, inputs)
                return _CapturedGraph(
                    graph, buffers, output, set(map(id, weights)), sorted(guard.written)
                )
            except (RuntimeError, UnsupportedValueError) as error:
                self._explain(error, guard)
                raise

    def _check_captured(self, guard: CaptureGuard, inputs: list[Tensor]) -> None:
        """Check a capture that has run to its end.

        Raises:
            CaptureError: A replay of it would be wrong.
        """
        if guard.failure is not None:  # the callable swallowed it
            raise guard.failure
        if guard.written and _overlap(inputs):
            raise CaptureError(
                f"cannot capture {self.name} as an HPU graph: it writes to its arguments, and some "
                "of them share memory, which their private copies do not. Pass clones. To run it "
                "without graphs: on_failure='eager'."
            )

    def _explain(self, error: Exception, guard: CaptureGuard) -> None:
        """Raise what the user should read in place of an error from a capture, if anything.

        Raises:
            CaptureError: An op has no kernel, the result cannot be refreshed, or the callable
                cannot be run once more.
        """
        refusal = error
        if isinstance(error, UnsupportedValueError):
            refusal = CaptureError(
                f"cannot capture {self.name} as an HPU graph: it returns {error.what}, and "
                "only tensors in tuples, lists, mappings and dataclasses can be refreshed by a "
                "replay. To run it without graphs: on_failure='eager'."
            )
        elif _FALLBACK_TEXT in str(error):
            refusal = CaptureError(
                f"cannot capture {self.name} as an HPU graph, at {guard.last_line}: {error} "
                "To run this target without graphs: on_failure='eager'."
            )
        if not isinstance(refusal, CaptureError):
            return  # the user's own
        if not guard.undo() and self._on_failure == "eager":
            raise _CannotRerunError(
                f"{refusal} But on_failure='eager' cannot help here: until then the forward had "
                "written to the module's parameters, and would write twice."
            ) from error
        if refusal is not error:
            raise refusal from error

    def _finish(self, captured: _CapturedGraph, inputs: list[Tensor]) -> Any:
        """Give the caller the result, and write back what the callable writes to its inputs."""
        for place in captured.written:
            inputs[place].copy_(captured.inputs[place])
        fresh: dict[int, Tensor] = {}
        results: list[Tensor] = []
        for tensor, source in zip(captured.output_tensors, captured.sources, strict=True):
            if type(source) is int:
                results.append(inputs[source])
            elif source is not None or not self._clone_outputs:
                results.append(tensor)
            else:
                if id(tensor) not in fresh:
                    fresh[id(tensor)] = tensor.clone()
                results.append(fresh[id(tensor)])
        return rebuild(captured.output, iter(results))

    def _make_room(self) -> None:
        while len(self._graphs) >= self._max_graphs:
            self._graphs.popitem(last=False)
            self.stats.evictions += 1
            self._say_once(
                f"{self.name} has been called with more than max_graphs={self._max_graphs} kinds "
                "of arguments, so graphs are dropped and captured again. Fix the shapes (pad to a "
                "few sizes), or raise max_graphs."
            )

    def _run_eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.stats.eager_calls += 1
        return self._fn(*args, **kwargs)

    def _give_up_on_call(self, why: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._say_once(f"{self.name} runs op by op, not as an HPU graph: {why} to have graphs.")
        return self._run_eagerly(args, kwargs)

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


def _overlap(tensors: list[Tensor]) -> bool:
    """Whether two of the tensors share a storage."""
    return len({tensor.untyped_storage()._cdata for tensor in tensors}) < len(tensors)


def _buffer_like(tensor: Tensor) -> Tensor:
    """An ordinary tensor of the same shape, strides where they do not overlap, and dtype."""
    return torch.empty_like(tensor, memory_format=torch.preserve_format, requires_grad=False)


class _no_autocast_cache:
    """Autocast without its cache of cast weights.

    A cast made before the capture would not be part of the graph, and replays would not see the
    weights change; one made inside it would be a buffer of the graph, used outside.
    """

    def __enter__(self) -> None:
        self._was_enabled = torch.is_autocast_cache_enabled()
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(False)

    def __exit__(self, *exc_info: object) -> None:
        torch.set_autocast_cache_enabled(self._was_enabled)
