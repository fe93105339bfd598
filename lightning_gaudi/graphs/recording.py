"""Captures a call: private static inputs, the guard, and what is refused.

There are two ways to bind inputs. By default the graph reads private buffers, which each replay
fills with one batched copy, and everything that it computes stays in memory. Where it binds inputs
(``disable_tensor_cache`` in the SDK's words, CARD.md 3) it reads the caller's tensors where they
are, and nothing but its outputs stays. That capture is a dry run, in which nothing is computed: the
first result comes from a replay too. What the bridge cannot bind is avoided here:

- it binds tensors that own their memory and are contiguous: any other is copied first, and where
  the graph must see other strides, the graph itself lays them out;
- an output in the memory of an input would not be refreshed: the graph returns a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.graphs.captured import CapturedGraph
from lightning_gaudi.graphs.guard import CaptureGuard
from lightning_gaudi.graphs.key import share_memory, storages_of
from lightning_gaudi.graphs.out_of_memory import explain_out_of_memory
from lightning_gaudi.graphs.refusals import (
    ReplacedWeightError,
    cannot_rerun,
    refusal_of,
    replaced_weight,
    shared_memory,
)
from lightning_gaudi.graphs.structure import UnsupportedValueError, flatten, rebuild
from lightning_gaudi.graphs.weights import ModuleWatch, Tables, put_back
from lightning_gaudi.runtime import capture as hpu_capture


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Captures calls of one callable.

    Attributes:
        fn: What is captured.
        name: What messages call it.
        binds_inputs: Whether replays bind the caller's tensors.
        reruns_failures: Whether a call that cannot be captured is run op by op afterwards.
    """

    fn: Callable[..., Any]
    name: str
    binds_inputs: bool
    reruns_failures: bool

    def record(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: Sequence[Tensor],
        watch: ModuleWatch | None,
        *,
        dry_run: bool,
    ) -> CapturedGraph:
        """Capture a call. Garbage must just have been collected.

        Args:
            args: Its positional arguments, as given.
            kwargs: Its keyword arguments, as given.
            inputs: The device tensors among them, each once.
            watch: The module whose weights the callable reads; results that are one of them are
                returned as they are.
            dry_run: Whether nothing is computed, so that the result is not there before a replay;
                nothing is where inputs are bound.

        Raises:
            CaptureError: A graph could not be right, or the callable cannot be captured.
            Exception: Whatever else the callable raises.
        """
        is_dry = dry_run or self.binds_inputs
        weights = [] if watch is None else watch.weights()
        tables = [] if watch is None else watch.tables()
        found: list[Tensor] = []
        flatten((args, kwargs), found)
        with torch.inference_mode(False), torch.no_grad(), _no_autocast_cache():
            statics = [_static_like(tensor) for tensor in inputs]
            by_id = {id(tensor): static for tensor, static in zip(inputs, statics, strict=True)}
            if inputs:
                torch._foreach_copy_(statics, inputs)  # type: ignore[arg-type]
            call = rebuild((args, kwargs), iter([by_id.get(id(t), t) for t in found]))
            guard = CaptureGuard(
                self.name, statics, weights, [t for t in found if id(t) not in by_id]
            )
            try:
                captured = self._capture(call, statics, weights, guard, dry_run)
                if guard.failure is not None:  # the callable swallowed it
                    raise guard.failure
                replaced = put_back(tables)
                if replaced is not None:
                    raise replaced_weight(self.name, replaced)
                if captured.writes_in_place:
                    check_memory(self.name, inputs, weights)
            except (RuntimeError, UnsupportedValueError) as error:
                refusal = refusal_of(self.name, error, guard.last_line)
                if refusal is None:
                    explain_out_of_memory(error)
                    self._leave_as_op_by_op(guard, statics, inputs, tables, is_dry)
                    raise
                put_back(tables)
                is_rerun = self.reruns_failures or isinstance(refusal, ReplacedWeightError)
                if not guard.undo() and is_rerun:
                    raise cannot_rerun(refusal) from error
                if refusal is error:
                    raise
                raise refusal from error
            except Exception:
                self._leave_as_op_by_op(guard, statics, inputs, tables, is_dry)
                raise
            return captured

    def _leave_as_op_by_op(
        self,
        guard: CaptureGuard,
        statics: list[Tensor],
        inputs: Sequence[Tensor],
        tables: Tables,
        is_dry: bool,
    ) -> None:
        """After the user's own error half-way: leave arguments as op by op leaves them.

        In a dry run nothing was computed, and the call is as if it had not been made.
        """
        if is_dry:
            put_back(tables)
            return
        for place in guard.written:
            with torch.inference_mode(inputs[place].is_inference()):
                inputs[place].copy_(statics[place])

    def _capture(
        self,
        call: tuple[tuple[Any, ...], dict[str, Any]],
        statics: list[Tensor],
        weights: list[Tensor],
        guard: CaptureGuard,
        dry_run: bool,
    ) -> CapturedGraph:
        graph = hpu_capture.new_graph()
        if not self.binds_inputs:
            with hpu_capture.capture(graph, dry_run=dry_run, is_collected=True) as report:
                with guard:
                    output = self.fn(*call[0], **call[1])
                results: list[Tensor] = []
                flatten(output, results)
            sources = _sources_of(results, statics, weights)
            return CapturedGraph(
                graph, statics, output, results, sources, guard, report.num_sub_graphs
            )
        marked = [tensor.contiguous() for tensor in statics]
        relaid = [place for place, tensor in enumerate(marked) if tensor is not statics[place]]
        with hpu_capture.capture(graph, dry_run=True, is_collected=True) as report:
            graph.mark_user_inputs(marked)
            for place in relaid:
                statics[place].copy_(marked[place])
            with guard:
                output = self.fn(*call[0], **call[1])
            for place in guard.written.intersection(relaid):
                marked[place].copy_(statics[place])
            results = []
            flatten(output, results)
            sources = _sources_of(results, statics, weights)
            results = _apart_from(statics, results, sources)
            output = rebuild(output, iter(results))
        graph.mark_user_outputs(
            [
                tensor
                for tensor, source in zip(results, sources, strict=True)
                if source is None and tensor.device.type != "cpu"
            ]
        )
        return CapturedGraph(graph, None, output, results, sources, guard, report.num_sub_graphs)


def check_memory(name: str, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Check the arguments of a callable that writes in place.

    Raises:
        CaptureError: Two of them, or one of them and a weight, share memory: op by op a write
            shows in both, in a graph it does not.
    """
    if share_memory(inputs):
        raise shared_memory(name, "some of its arguments share memory")
    if not storages_of(inputs).isdisjoint(storages_of(weights)):
        raise shared_memory(name, "one of its arguments shares memory with a weight")


def _sources_of(
    results: list[Tensor], statics: list[Tensor], weights: list[Tensor]
) -> list[int | Tensor | None]:
    places = {id(tensor): place for place, tensor in enumerate(statics)}
    ids = set(map(id, weights))
    return [t if id(t) in ids else places.get(id(t)) for t in results]


def _apart_from(
    statics: list[Tensor], results: list[Tensor], sources: list[int | Tensor | None]
) -> list[Tensor]:
    """Within the capture, replace results that lie in the memory of an input by copies."""
    storages = storages_of(statics)
    apart: dict[int, Tensor] = {}
    for tensor, source in zip(results, sources, strict=True):
        if id(tensor) not in apart:
            is_inside = source is None and not storages.isdisjoint(storages_of([tensor]))
            apart[id(tensor)] = tensor.clone() if is_inside else tensor
    return [apart[id(tensor)] for tensor in results]


def _static_like(tensor: Tensor) -> Tensor:
    """An ordinary tensor of the same shape, dtype, and strides where they do not overlap."""
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
