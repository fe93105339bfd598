"""`GraphedTraining`: forward and backward of a callable as HPU graphs.

A call that needs gradients goes through two states before it is replayed:

- *observed*: it runs op by op, and notes which of its outputs get a gradient, and whether gradients
  are to be differentiated in turn;
- *captured*: forward and backward, where a call with the same key has been observed;
- *replayed*: where a captured graph of its key is free. A graph is taken from the forward to the
  backward of a call, so several calls in one step have a graph each.

What could not be right as a graph runs op by op for good, which is said once: double backward,
hooks, saved-tensor hooks, writes to arguments, attributes that change with every call, more graphs
than `max_graphs`. Calls without gradients are the business of the `GraphedForward` behind.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from lightning_gaudi.errors import CaptureError
from lightning_gaudi.graphs.key import Key, key_of
from lightning_gaudi.graphs.replay import GraphedForward, OnFailure
from lightning_gaudi.graphs.stats import GraphRow, GraphStats
from lightning_gaudi.graphs.structure import UnsupportedValueError, flatten
from lightning_gaudi.graphs.training_capture import NotForGraphsError, TrainingCapture
from lightning_gaudi.graphs.training_graph import Call, Mask, TrainingGraph, settings_of
from lightning_gaudi.graphs.weights import ModuleWatch
from lightning_gaudi.runtime import capture as hpu_capture

_MAX_KEYS = 64


@dataclass
class _Observation:
    """Which outputs of one observed call got a gradient so far."""

    places: set[int] = field(default_factory=set)


@dataclass
class _Entry:
    """What is known of the calls of one key."""

    observations: list[_Observation] = field(default_factory=list)
    masks: set[Mask] = field(default_factory=set)
    graphs: list[TrainingGraph] = field(default_factory=list)

    def learn(self) -> None:
        """Make masks of the observations whose backward has run."""
        self.masks |= {tuple(sorted(o.places)) for o in self.observations if o.places}
        self.observations = [o for o in self.observations if not o.places]


class GraphedTraining:
    """A callable whose forward and backward are captured once a key and then replayed.

    Gradients equal those of running op by op, to the last bit where the same kernels run; but where
    a callable uses a weight more than once, and is called more than once before the backward, they
    are summed up call by call, which rounds otherwise. Draws of random numbers are anew in each
    replay. What the callable does besides computing happens when it is observed and captured only.

    Args:
        inference: The same callable for calls without gradients; counts go to its stats.
        fn: The callable.
        module: The module whose weights it reads.
        max_graphs: For how many calls graphs are kept; further ones run op by op.
        clone_outputs: Whether results are the caller's own. Without, they are valid until the
            graph's next call, which comes after their backward.
        asynchronous: Whether replays are asynchronous.
        on_failure: What to do where the callable cannot be captured: raise, or run it ``"eager"``.
    """

    def __init__(
        self,
        inference: GraphedForward,
        fn: Callable[..., Any],
        module: nn.Module,
        *,
        max_graphs: int = 16,
        clone_outputs: bool = True,
        asynchronous: bool = False,
        on_failure: OnFailure = "raise",
    ) -> None:
        update_wrapper(self, fn, updated=())
        self.name = inference.name
        self._inference = inference
        self._fn = fn
        self._module = module
        self._watch = ModuleWatch(module)
        self._max_graphs = max_graphs
        self._clone_outputs = clone_outputs
        self._asynchronous = asynchronous
        self._on_failure = on_failure
        self._entries: dict[Key, _Entry] = {}
        self._last_settings: tuple[Any, ...] = ()
        self._gave_up = False
        self._said: set[str] = set()

    @property
    def stats(self) -> GraphStats:
        """Counts, those of calls without gradients included."""
        return self._inference.stats

    @property
    def num_graphs(self) -> int:
        """For how many calls there are graphs now."""
        return sum(len(entry.graphs) for entry in self._entries.values())

    def clear(self) -> None:
        """Drop all graphs but those that wait for their backward."""
        for entry in self._entries.values():
            self._drop_graphs(entry)
        self._entries.clear()
        self._watch.forget()
        self._gave_up = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the callable.

        Raises:
            CaptureError: It cannot be captured, and ``on_failure="raise"``.
            Exception: Whatever the callable raises, unchanged.
        """
        if hpu_capture.is_capturing():
            return self._fn(*args, **kwargs)
        if not torch.is_grad_enabled():
            return self._inference(*args, **kwargs)
        try:
            key, inputs = key_of(args, kwargs)
        except UnsupportedValueError:
            return self._inference(*args, **kwargs)  # says why, and runs it
        weights = self._weights()
        if not any(tensor.requires_grad for tensor in (*inputs, *weights)):
            return self._inference(*args, **kwargs)
        if self._gave_up:
            return self._run_eagerly(args, kwargs)
        if torch.is_anomaly_enabled():
            self._say_once("anomaly detection looks at every gradient on the host.")
            return self._run_eagerly(args, kwargs)
        hook = self._find_hook(weights)
        if hook is not None:
            self._say_once(f"{hook}. Remove the hook to have graphs.")
            return self._run_eagerly(args, kwargs)
        settings = settings_of(self._module)
        key = (*key, settings, *[tensor.requires_grad for tensor in (*inputs, *weights)])
        entry = self._entries.setdefault(key, _Entry())
        entry.learn()
        if not entry.masks:
            return self._observe(entry, settings, args, kwargs)
        autocast_dtype = (
            torch.get_autocast_dtype("hpu") if torch.is_autocast_enabled("hpu") else None
        )
        call = Call(
            args=args,
            kwargs=kwargs,
            inputs=inputs,
            settings=settings,
            autocast_dtype=autocast_dtype,
        )
        graph = next((graph for graph in entry.graphs if graph.is_free), None)
        if graph is None:
            return self._capture(entry, call, weights)
        self.stats.replays += 1
        graph.row.replays += 1
        return graph.replay(call)

    # --- the states of a call -------------------------------------------------------------------

    def _observe(
        self,
        entry: _Entry,
        settings: tuple[Any, ...],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        observation = _Observation()
        entry.observations.append(observation)
        output = self._run_eagerly(args, kwargs)
        tensors: list[Tensor] = []
        try:
            flatten(output, tensors)
        except UnsupportedValueError as error:
            self._give_up(f"it returns {error.what}, which a replay cannot refresh")
            return output
        given: list[Tensor] = []
        flatten((args, kwargs), given)
        seen = {id(tensor) for tensor in (*given, *self._weights())}
        for place, tensor in enumerate(tensors):
            if tensor.requires_grad and id(tensor) not in seen:
                seen.add(id(tensor))
                tensor.register_hook(self._noting(observation, place))  # type: ignore[no-untyped-call]
        if len(self._entries) > _MAX_KEYS + self._max_graphs:
            changing = {name for _, name, *_ in set(settings) ^ set(self._last_settings)}
            self._entries = {k: e for k, e in self._entries.items() if e.graphs or e is entry}
            self._give_up(
                "hardly two calls are alike: their arguments, or numbers among the attributes of "
                f"the module ({', '.join(sorted(changing)) or 'none'}), are other ones each time. "
                "Keep what counts calls out of the module"
            )
        self._last_settings = settings
        return output

    def _noting(self, observation: _Observation, place: int) -> Callable[[Tensor], None]:
        def note(grad: Tensor | None) -> None:
            if torch.is_grad_enabled():
                self._on_miss(None)
            if grad is not None:
                observation.places.add(place)

        return note

    def _capture(self, entry: _Entry, call: Call, weights: list[Tensor]) -> Any:
        if self.num_graphs >= self._max_graphs:
            self._say_once(
                f"there are max_graphs={self._max_graphs} graphs already, for other shapes or for "
                "calls that wait for their backward. Fix the shapes (pad to a few sizes), or raise "
                "max_graphs."
            )
            return self._run_eagerly(call.args, call.kwargs)
        started = time.perf_counter()
        bytes_before = hpu_capture.bytes_in_use()
        capture = TrainingCapture(
            self._fn,
            self.name,
            call,
            module=self._module,
            weights=weights,
            clone_outputs=self._clone_outputs,
            asynchronous=self._asynchronous,
            on_miss=lambda mask: self._on_miss(mask, entry),
        )
        try:
            with torch.autograd.graph.disable_saved_tensors_hooks(_SAVED_TENSOR_HOOKS):
                graph = capture.run(sorted(entry.masks))
        except (NotForGraphsError, UnsupportedValueError, RuntimeError) as error:
            why = self._reason(error)
            if why is None:
                raise
            if not capture.undo():
                raise CaptureError(
                    f"{self.name} cannot train as an HPU graph: {why}. Nor can this call run op by "
                    "op: until then it had written to the module's parameters, and would write "
                    "twice. Leave this target out of the fit stage."
                ) from error
            self._give_up(why)
            return self._run_eagerly(call.args, call.kwargs)
        entry.graphs.append(graph)
        seconds = time.perf_counter() - started
        graph.row = GraphRow(
            inputs="forward and backward of "
            + ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in call.inputs),
            capture_seconds=seconds,
            num_bytes=max(0, hpu_capture.bytes_in_use() - bytes_before),
        )
        self.stats.note_graph(graph.row)
        return graph.result(call)

    def _reason(self, error: Exception) -> str | None:
        """Why a capture failed, where the callable is to run op by op instead."""
        if isinstance(error, NotForGraphsError):
            return str(error)
        if isinstance(error, UnsupportedValueError):
            return f"it returns {error.what}, which a replay cannot refresh"
        if _SAVED_TENSOR_HOOKS in str(error):
            return _SAVED_TENSOR_HOOKS
        if isinstance(error, CaptureError) and self._on_failure == "eager":
            return str(error)
        return None

    # --- what keeps it right --------------------------------------------------------------------

    def _weights(self) -> list[Tensor]:
        """Parameters and buffers, each once; drops the graphs where they were replaced."""
        if self._watch.has_changed():
            self._watch.refresh()
            for entry in self._entries.values():
                self._drop_graphs(entry)
        return list({id(tensor): tensor for tensor in self._watch.weights()}.values())

    def _find_hook(self, weights: list[Tensor]) -> str | None:
        """What would run once, at the capture, in place of once a call; None if there is nothing.

        Hooks have no public way to ask for them.
        """
        hooked = self._watch.hooked()
        if hooked is not None:
            return f"its submodule {hooked} has a forward hook"
        if any(getattr(nn_module, f"_global_backward{kind}", None) for kind in _BACKWARD_HOOKS):
            return "every module has a backward hook"
        for module in self._module.modules():
            if module is not self._module and any(
                getattr(module, f"_backward{kind}", None) for kind in _BACKWARD_HOOKS
            ):
                return f"its submodule {type(module).__name__} has a backward hook"
        if any(getattr(tensor, "_backward_hooks", None) for tensor in weights):
            return "a parameter has a hook (Tensor.register_hook)"
        return None

    def _on_miss(self, mask: Mask | None, entry: _Entry | None = None) -> None:
        if mask is None:
            self._give_up("its gradients are differentiated once more (create_graph=True)")
        elif entry is not None and mask not in entry.masks:
            entry.masks.add(mask)
            self._drop_graphs(entry)  # the next call captures this backward too

    def _drop_graphs(self, entry: _Entry) -> None:
        for graph in entry.graphs:
            self.stats.forget_graph(graph.row)
        entry.graphs.clear()

    def _give_up(self, why: str) -> None:
        self._gave_up = True
        self._say_once(f"{why}.")

    def _run_eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.stats.eager_calls += 1
        return self._fn(*args, **kwargs)

    def _say_once(self, why: str) -> None:
        message = f"{self.name} trains op by op, not as an HPU graph: {why}"
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=4)


_SAVED_TENSOR_HOOKS = "saved-tensor hooks are in use (checkpointing, save_on_cpu)"
_BACKWARD_HOOKS = ("_hooks", "_pre_hooks")
