"""Captures a forward and its backward for `TrainingGraph`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gaudi.graphs.guard import CaptureGuard
from lightning_gaudi.graphs.structure import flatten, rebuild
from lightning_gaudi.graphs.training_graph import BackwardGraph, Call, Mask, OnMiss, TrainingGraph
from lightning_gaudi.runtime import capture as hpu_capture


class NotForGraphsError(Exception):
    """A forward that runs op by op because a graph of its training step could not be right."""


class TrainingCapture:
    """One attempt to capture a call with its backwards.

    Args:
        fn: The callable.
        name: What messages call it.
        call: The call.
        module: The module that it reads.
        weights: That module's parameters and buffers, each once.
        clone_outputs: Whether results are the caller's own.
        asynchronous: Whether replays are asynchronous.
        on_miss: See `TrainingGraph`.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        name: str,
        call: Call,
        *,
        module: nn.Module,
        weights: list[Tensor],
        clone_outputs: bool,
        asynchronous: bool,
        on_miss: OnMiss,
    ) -> None:
        self._fn = fn
        self._name = name
        self._weights = weights
        self._options: dict[str, Any] = {
            "module": module,
            "clone_outputs": clone_outputs,
            "asynchronous": asynchronous,
            "on_miss": on_miss,
        }
        found: list[Tensor] = []
        flatten((call.args, call.kwargs), found)
        with torch.inference_mode(False), torch.no_grad():
            self._buffers = [torch.empty_like(t, requires_grad=False) for t in call.inputs]
            if self._buffers:
                torch._foreach_copy_(self._buffers, call.inputs)
            for buffer, tensor in zip(self._buffers, call.inputs, strict=True):
                buffer.requires_grad_(tensor.requires_grad)
            by_id = {id(t): buffer for t, buffer in zip(call.inputs, self._buffers, strict=True)}
            self._arguments = rebuild(
                (call.args, call.kwargs), iter([by_id.get(id(t), t) for t in found])
            )
            host_arguments = [tensor for tensor in found if id(tensor) not in by_id]
            self._guard = CaptureGuard(name, self._buffers, weights, host_arguments)

    def undo(self) -> bool:
        """Put back what a failed capture has changed.

        Returns:
            Whether the call can now run op by op: not where it wrote to a parameter.
        """
        return self._guard.undo()

    def run(self, masks: Iterable[Mask]) -> TrainingGraph:
        """Capture the forward, and a backward for each mask. The graph then holds the results.

        Raises:
            NotForGraphsError: A graph could not be right, though the callable is.
            CaptureError: The callable cannot be captured.
            UnsupportedValueError: It returns something that a replay cannot refresh.
            Exception: Whatever the callable raises, unchanged.
        """
        captured = self._capture_forward()
        pending = list(masks)
        while pending:
            mask = pending.pop()
            captured.backwards[mask] = self._capture_backward(captured, mask, bool(pending))
        if self._guard.failure is not None:
            raise self._guard.failure
        return captured

    def _capture_forward(self) -> TrainingGraph:
        graph = hpu_capture.new_graph()
        guard = self._guard
        args, kwargs = self._arguments
        try:
            with (
                torch.inference_mode(False),
                torch.enable_grad(),
                _own_autocast_cache(),
                hpu_capture.capture(graph),
                guard,
            ):
                output = self._fn(*args, **kwargs)
        except RuntimeError as error:
            if "leaf Variable" in str(error):  # the buffers are leaves where the arguments are not
                raise NotForGraphsError("it writes to an argument that needs a gradient") from error
            raise
        if guard.failure is not None:
            raise guard.failure
        if guard.written:
            raise NotForGraphsError("it writes to its arguments")
        tensors: list[Tensor] = []
        flatten(output, tensors)
        places = {id(tensor): place for place, tensor in enumerate(self._buffers)}
        weight_ids = set(map(id, self._weights))
        reached = _leaves_of(tensors)
        return TrainingGraph(
            name=self._name,
            fn=self._fn,
            graph=graph,
            inputs=self._buffers,
            output=output,
            tensors=tensors,
            sources=[t if id(t) in weight_ids else places.get(id(t)) for t in tensors],
            weights=[weight for weight in self._weights if id(weight) in reached],
            is_repeatable=not (guard.draws_random or guard.has_written_weights),
            **self._options,
        )

    def _capture_backward(
        self, captured: TrainingGraph, mask: Mask, retain_graph: bool
    ) -> BackwardGraph:
        """Capture one backward, on gradients of zero; nothing comes of its results."""
        graph = hpu_capture.new_graph()
        outputs = [captured.tensors[place] for place in mask]
        leaves = [tensor for tensor in self._buffers if tensor.requires_grad] + captured.weights
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("hpu", enabled=False):
            with self._guard:  # which gets to know them
                grad_outputs = [torch.zeros_like(output) for output in outputs]
            with hpu_capture.capture(graph), self._guard:
                grads = torch.autograd.grad(
                    outputs, leaves, grad_outputs, retain_graph=retain_graph, allow_unused=True
                )
        return BackwardGraph(graph=graph, grad_outputs=grad_outputs, grads=list(grads))


def _leaves_of(outputs: list[Tensor]) -> set[int]:
    """The ids of the leaves that get a gradient from some output.

    Others are kept out of the node: DDP would take them for used.
    """
    pending: list[Any] = [tensor.grad_fn for tensor in outputs]
    seen: set[Any] = set()
    leaves: set[int] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        pending += [following for following, _ in node.next_functions]
    return leaves


@contextmanager
def _own_autocast_cache() -> Iterator[None]:
    """Autocast's cache of cast weights, empty before and after.

    A cast from before would not be part of the graph, and one from the graph would be used outside.
    Within it stays: with it a weight that is used twice gets its gradients summed up in the lower
    precision, without it in the higher.
    """
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()
