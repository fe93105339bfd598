"""One captured forward with its backward, and the autograd node that replays the two.

The forward is captured with gradients on, on private buffers for the inputs and on the weights
themselves; right behind it the backward, from ``torch.autograd.grad`` on what the forward
returned. A replayed call copies its inputs in, replays the forward and enters autograd as a single
node, whose backward copies the incoming gradients in and replays the backward. Three things keep
this equal to running op by op:

- What the forward keeps for the backward lies in memory of the graph, so that a call owns its graph
  (`Lease`) until its backward has run or can run no more.
- A backward depends on which outputs have a gradient: one without must not be taken for zeros, or
  weights that eager leaves alone would get a gradient of zeros and be decayed. So there is one
  backward graph for each such choice (a *mask*).
- Gradients leave as copies, because autograd keeps the tensor that it is given as ``.grad``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gaudi.errors import CaptureError
from lightning_gaudi.graphs import kept
from lightning_gaudi.graphs.stats import GraphRow
from lightning_gaudi.graphs.structure import flatten, rebuild
from lightning_gaudi.runtime import capture as hpu_capture
from lightning_gaudi.runtime import ranges

Mask = tuple[int, ...]
"""Which of a call's outputs have a gradient: their places among all output tensors."""
_SETTINGS = (bool, int, float, str, type(None))

OnMiss = Callable[[Mask | None], None]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of the captured callable.

    Attributes:
        args: Positional arguments, as given.
        kwargs: Keyword arguments, as given.
        inputs: The device tensors among them, each once.
        settings: See `settings_of`.
        autocast_dtype: The dtype of autocast; None without.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Tensor]
    settings: tuple[Any, ...]
    autocast_dtype: torch.dtype | None

    def versions(self) -> list[int | None]:
        """How often each input has been written to."""
        return [None if tensor.is_inference() else tensor._version for tensor in self.inputs]


def settings_of(module: nn.Module) -> tuple[Any, ...]:
    """Plain attributes of a module and its submodules: training mode, a dropout's `p` and so on.

    A graph has them as constants, and training changes some on the way: rates, temperatures.
    """
    return tuple(
        (each.training, name, type(value), value)
        for each in module.modules()
        for name, value in (("", None), *each.__dict__.items())
        if type(value) in _SETTINGS and not name.startswith("_")
    )


class Lease:
    """A call's hold on a graph, from its forward to its backward.

    Attributes:
        is_over: Whether the backward has run.
    """

    __slots__ = ("__weakref__", "is_over")

    def __init__(self) -> None:
        self.is_over = False


@dataclass(kw_only=True)
class BackwardGraph:
    """The backward for one mask: static gradients in, static gradients out."""

    graph: hpu_capture.Graph
    grad_outputs: list[Tensor]
    grads: list[Tensor | None]


@dataclass(kw_only=True)
class TrainingGraph:
    """A forward and its backwards.

    Attributes:
        name: What messages call the callable.
        fn: The callable.
        graph: The forward.
        inputs: Private input buffers.
        output: What the forward returned; a replay refreshes its tensors.
        tensors: The tensors of `output`, in order.
        sources: For each of them the place of the input that it is, or the weight that it is; None
            for a result of the graph.
        weights: Weights that get a gradient from some output.
        is_repeatable: Whether running the callable again gives the same and writes nothing.
        clone_outputs: Whether results are the caller's own.
        asynchronous: Whether replays are asynchronous.
        module: The module that it reads.
        on_miss: Called with a backward's mask where no graph has that backward; with None for one
            that is to be differentiated itself.
        backwards: The backwards by mask.
        row: What is told of it.
    """

    name: str
    fn: Callable[..., Any]
    graph: hpu_capture.Graph
    inputs: list[Tensor]
    output: Any
    tensors: list[Tensor]
    sources: list[int | Tensor | None]
    weights: list[Tensor]
    is_repeatable: bool
    clone_outputs: bool
    asynchronous: bool
    module: nn.Module
    on_miss: OnMiss
    backwards: dict[Mask, BackwardGraph] = field(default_factory=dict)
    row: GraphRow = field(default_factory=GraphRow)
    _lease: weakref.ref[Lease] | None = None

    def __post_init__(self) -> None:
        kept.note(self)

    @property
    def is_free(self) -> bool:
        """Whether no call waits for its backward."""
        lease = None if self._lease is None else self._lease()
        return lease is None or lease.is_over

    def is_leased_to(self, lease: Lease) -> bool:
        """Whether what the graph holds is still of that call."""
        return self._lease is not None and self._lease() is lease

    def replay(self, call: Call) -> Any:
        """Run the forward on new inputs."""
        with torch.no_grad():
            _replay(self.graph, self.inputs, call.inputs, self.asynchronous)
        return self.result(call)

    def result(self, call: Call) -> Any:
        """What the forward returned last, as the result of a call that needs gradients."""
        lease = Lease()
        self._lease = weakref.ref(lease)
        given = [tensor for tensor in call.inputs if tensor.requires_grad]
        made = _Replayed.apply(self, lease, call, len(given), *given, *self.weights)  # type: ignore[no-untyped-call]
        by_id = dict(zip(map(id, self.distinct()), made, strict=True))
        results: list[Tensor] = []
        for tensor, source in zip(self.tensors, self.sources, strict=True):
            if type(source) is int:
                results.append(call.inputs[source])
            else:
                results.append(by_id[id(tensor)] if source is None else tensor)
        return rebuild(self.output, iter(results))

    def distinct(self) -> list[Tensor]:
        """The results of the graph, each once."""
        return list(
            {
                id(tensor): tensor
                for tensor, source in zip(self.tensors, self.sources, strict=True)
                if source is None
            }.values()
        )

    def place_of(self, index: int) -> int:
        """The place among all output tensors of a distinct result."""
        wanted = self.distinct()[index]
        return next(place for place, tensor in enumerate(self.tensors) if tensor is wanted)


@ranges.in_range(ranges.REPLAY)
def _replay(
    graph: hpu_capture.Graph, statics: list[Tensor], given: list[Tensor], asynchronous: bool
) -> None:
    """Replay a graph on new tensors, copied over its own."""
    if given:
        torch._foreach_copy_(statics, given)
    graph.replay(asynchronous=asynchronous)


class _Replayed(torch.autograd.Function):
    """The autograd node of a replayed call."""

    @staticmethod
    def forward(
        ctx: Any, graph: TrainingGraph, lease: Lease, call: Call, num_given: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        # Makes autograd refuse a backward whose weights were written to since, as op by op.
        ctx.save_for_backward(*tensors[num_given:])
        ctx.graph, ctx.lease, ctx.call, ctx.versions = graph, lease, call, call.versions()
        made = graph.distinct()
        fresh = [t.detach().clone() if graph.clone_outputs else t.detach() for t in made]
        ctx.mark_non_differentiable(
            *[new for new, old in zip(fresh, made, strict=True) if not old.requires_grad]
        )
        return tuple(fresh)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        graph: TrainingGraph = ctx.graph
        weights = ctx.saved_tensors
        pairs = [(graph.place_of(i), g) for i, g in enumerate(grads) if g is not None]
        mask, incoming = tuple(place for place, _ in pairs), [grad for _, grad in pairs]
        backward = graph.backwards.get(mask)
        if torch.is_grad_enabled() or backward is None:
            found: Sequence[Tensor | None] = _run_again(ctx, weights, mask, incoming)
        elif not graph.is_leased_to(ctx.lease):
            raise CaptureError(
                f"{graph.name}: a second backward of a call (retain_graph=True) whose HPU graph "
                "has been used for another call since, so that what it needs is gone. Run all "
                "backwards of a call before the next call, or leave this target out of the fit "
                "stage."
            )
        else:
            _replay(backward.graph, backward.grad_outputs, incoming, graph.asynchronous)
            found = [None if grad is None else grad.clone() for grad in backward.grads]
        ctx.lease.is_over = True
        return (None, None, None, None, *found)


def _run_again(
    ctx: Any, weights: tuple[Tensor, ...], mask: Mask, grads: list[Tensor]
) -> Sequence[Tensor | None]:
    """The backward that no graph has: of the callable, run once more op by op.

    Raises:
        CaptureError: It cannot be run once more with the same result.
    """
    graph: TrainingGraph = ctx.graph
    call: Call = ctx.call
    create_graph = torch.is_grad_enabled()
    wanted = "create_graph=True" if create_graph else f"gradients of outputs {list(mask)} only"
    graph.on_miss(None if create_graph else mask)
    has_changed = call.versions() != ctx.versions or settings_of(graph.module) != call.settings
    if not graph.is_repeatable or has_changed:
        raise CaptureError(
            f"{graph.name}: a backward that was not captured ({wanted}; there are graphs for "
            f"outputs {', '.join(map(str, map(list, graph.backwards)))}), and the forward draws "
            "random numbers or writes to its buffers, or its inputs or modes have changed, so it "
            "cannot be run once more. Leave this target out of the fit stage."
        )
    given = [tensor for tensor in call.inputs if tensor.requires_grad]
    autocast = torch.autocast(
        "hpu", dtype=call.autocast_dtype, enabled=call.autocast_dtype is not None
    )
    with torch.enable_grad():
        tensors: list[Tensor] = []
        with autocast:
            flatten(graph.fn(*call.args, **call.kwargs), tensors)
        return torch.autograd.grad(
            [tensors[place] for place in mask],
            [*given, *weights],
            grads,
            create_graph=create_graph,
            allow_unused=True,
        )
