"""Captures a forward and its backward for `TrainingGraph`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gaudi.graphs.guard import CaptureGuard
from lightning_gaudi.graphs.structure import flatten, rebuild
from lightning_gaudi.graphs.training_graph import BackwardGraph, Call, Mask, OnMiss, TrainingGraph
from lightning_gaudi.runtime import capture as hpu_capture


class NotForGraphsError(Exception):
    """A forward that runs op by op because a graph of its training step could not be right."""


class _Randomness(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices whether random numbers are drawn."""

    was_seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.was_seen |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def capture_training(
    fn: Callable[..., Any],
    name: str,
    call: Call,
    weights: list[Tensor],
    masks: Iterable[Mask],
    *,
    clone_outputs: bool,
    asynchronous: bool,
    module: nn.Module,
    on_miss: OnMiss,
) -> TrainingGraph:
    """Capture a call and its backward for each mask. The graph then holds the call's results.

    Args:
        fn: The callable.
        name: What messages call it.
        call: The call.
        weights: All that the callable reads besides its arguments, each once.
        masks: For which choices of outputs with gradients to capture a backward.
        clone_outputs: Whether results are the caller's own.
        asynchronous: Whether replays are asynchronous.
        module: The module that it reads.
        on_miss: See `TrainingGraph`.

    Raises:
        NotForGraphsError: A graph could not be right, though nothing is wrong with the callable.
        CaptureError: The callable cannot be captured.
        Exception: Whatever the callable raises, unchanged.
    """
    graph = hpu_capture.new_graph()
    with torch.inference_mode(False), torch.no_grad():
        buffers = [torch.empty_like(tensor, requires_grad=False) for tensor in call.inputs]
        if buffers:
            torch._foreach_copy_(buffers, call.inputs)
        for buffer, tensor in zip(buffers, call.inputs, strict=True):
            buffer.requires_grad_(tensor.requires_grad)
        found: list[Tensor] = []
        flatten((call.args, call.kwargs), found)
        by_id = {id(given): buffer for given, buffer in zip(call.inputs, buffers, strict=True)}
        args, kwargs = rebuild((call.args, call.kwargs), iter([by_id.get(id(t), t) for t in found]))
        guard = CaptureGuard(name, buffers, weights, [t for t in found if id(t) not in by_id])
        randomness = _Randomness()  # type: ignore[no-untyped-call]
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            _own_autocast_cache(),
            hpu_capture.capture(graph),
            guard,
            randomness,
        ):
            output = fn(*args, **kwargs)
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
    places = {id(tensor): place for place, tensor in enumerate(buffers)}
    weight_ids = set(map(id, weights))
    reached = _leaves_of(tensors)
    captured = TrainingGraph(
        name=name,
        fn=fn,
        graph=graph,
        inputs=buffers,
        output=output,
        tensors=tensors,
        sources=[t if id(t) in weight_ids else places.get(id(t)) for t in tensors],
        weights=[weight for weight in weights if id(weight) in reached],
        is_repeatable=not (randomness.was_seen or guard.has_written_weights),
        clone_outputs=clone_outputs,
        asynchronous=asynchronous,
        module=module,
        on_miss=on_miss,
    )
    masks = list(masks)
    for mask in masks:
        captured.backwards[mask] = _capture_backward(
            captured, mask, guard, is_last=mask == masks[-1]
        )
    if guard.failure is not None:
        raise guard.failure
    return captured


def _capture_backward(
    captured: TrainingGraph, mask: Mask, guard: CaptureGuard, *, is_last: bool
) -> BackwardGraph:
    """Capture one backward, on gradients of zero; nothing comes of its results."""
    graph = hpu_capture.new_graph()
    outputs = [captured.tensors[place] for place in mask]
    leaves = [tensor for tensor in captured.inputs if tensor.requires_grad] + captured.weights
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("hpu", enabled=False):
        with guard:  # which gets to know them
            grad_outputs = [torch.zeros_like(output) for output in outputs]
        with hpu_capture.capture(graph), guard:
            grads = torch.autograd.grad(
                outputs, leaves, grad_outputs, retain_graph=not is_last, allow_unused=True
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
