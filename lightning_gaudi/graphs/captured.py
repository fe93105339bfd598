"""One captured graph: how a call's tensors reach it, and how its results reach the caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.graphs import kept
from lightning_gaudi.graphs.guard import CaptureGuard
from lightning_gaudi.graphs.key import Key
from lightning_gaudi.graphs.stats import GraphRow
from lightning_gaudi.graphs.structure import rebuild
from lightning_gaudi.graphs.tensor_check import TensorCheck, tensor_check
from lightning_gaudi.runtime import capture as hpu_capture
from lightning_gaudi.runtime import ranges


class CapturedGraph:
    """A graph with what a replay of it needs.

    Attributes:
        graph: The HPU graph.
        buffers: Private input buffers, which a replay reads; None where it binds its inputs.
        output: What the callable returned; a replay refreshes its tensors.
        output_tensors: The tensors of `output`, in order.
        sources: For each of them where a result comes from that must not be cloned: the place of
            the input that it is, or the weight that it is; None for a result of the graph.
        written: Places of inputs that the callable writes to.
        writes_weights: Whether it writes to parameters or buffers.
        draws_random: Whether it draws random numbers.
        key: Its key among the graphs of its callable.
        hint: A part of the key that is quickly made; it finds the graph that was last used for it.
        last_used: When it was last used, in calls.
        row: What is told of it.
    """

    __slots__ = (
        "__weakref__",
        "_checks",
        "_is_one_result",
        "buffers",
        "draws_random",
        "graph",
        "hint",
        "key",
        "last_used",
        "output",
        "output_tensors",
        "row",
        "sources",
        "writes_weights",
        "written",
    )

    def __init__(
        self,
        graph: hpu_capture.Graph,
        buffers: list[Tensor] | None,
        output: Any,
        output_tensors: list[Tensor],
        sources: list[int | Tensor | None],
        guard: CaptureGuard,
        num_sub_graphs: int | None,
    ) -> None:
        self.graph = graph
        self.buffers = buffers
        self.output = output
        self.output_tensors = output_tensors
        self.sources = sources
        self.written = sorted(guard.written)
        self.writes_weights = guard.has_written_weights
        self.draws_random = guard.draws_random
        self.key: Key = ()
        self.hint: Key = ()
        self.last_used = 0
        self.row = GraphRow(num_sub_graphs=num_sub_graphs)
        # Most forwards return one tensor, made by the graph.
        self._is_one_result = (
            output is output_tensors[0] and sources[0] is None if sources else False
        )
        # By whether it is asked in inference mode, where tensors and modes differ.
        self._checks: list[TensorCheck | None] = [None, None]
        kept.note(self)

    @property
    def writes_in_place(self) -> bool:
        """Whether the callable writes to inputs, parameters or buffers."""
        return bool(self.written) or self.writes_weights

    def learn(self, tensors: Sequence[Tensor], is_inference: bool) -> None:
        """Take note of a call with this graph's key, so that `accepts` knows the next like it.

        Args:
            tensors: Its tensors: device tensors, no two the same.
            is_inference: Whether it came in inference mode.
        """
        self._checks[is_inference] = tensor_check(tensors) if tensors else _always

    def accepts(self, tensors: Sequence[Tensor], is_inference: bool) -> bool:
        """Whether the tensors of a call, whose structure and modes are this graph's, fit it too.

        True is a proof; False means that the key must tell.
        """
        check = self._checks[is_inference]
        return check is not None and check(*tensors)

    def replay(self, inputs: Sequence[Tensor], asynchronous: bool) -> Sequence[Tensor]:
        """Run the graph on a call's inputs. Outside inference mode, without gradients.

        Args:
            inputs: The call's device tensors, each once.
            asynchronous: Whether the card may return before it has run.

        Returns:
            What the graph read and wrote in their place: private buffers, or the inputs themselves
            and copies of those that it cannot bind.
        """
        if ranges.is_on:
            with ranges.named(ranges.REPLAY):
                return self._replay(inputs, asynchronous)
        return self._replay(inputs, asynchronous)

    def _replay(self, inputs: Sequence[Tensor], asynchronous: bool) -> Sequence[Tensor]:
        if self.buffers is not None:
            if len(inputs) == 1:
                self.buffers[0].copy_(inputs[0])
            elif inputs:
                torch._foreach_copy_(self.buffers, inputs)  # type: ignore[arg-type]
            self.graph.replay(asynchronous)
            return self.buffers
        given = [tensor if _owns_memory(tensor) else _own_copy(tensor) for tensor in inputs]
        self.graph.replayV3(given, asynchronous)
        return given

    def result(self, inputs: Sequence[Tensor], given: Sequence[Tensor], clones: bool) -> Any:
        """Give the caller what the last replay, or the capture, has computed and written.

        Args:
            inputs: The call's device tensors.
            given: What the graph read in their place.
            clones: Whether results are the caller's own; else the next replay overwrites them.
        """
        for place in self.written:
            if given[place] is not inputs[place]:
                inputs[place].copy_(given[place])
        tensors = self.output_tensors
        if self._is_one_result:
            return tensors[0].clone() if clones else tensors[0]
        fresh: dict[int, Tensor] = {}
        results: list[Tensor] = []
        for place, tensor in enumerate(tensors):
            if id(tensor) not in fresh:
                fresh[id(tensor)] = self._one_result(place, inputs, clones)
            results.append(fresh[id(tensor)])
        return rebuild(self.output, iter(results))

    def _one_result(self, place: int, inputs: Sequence[Tensor], clones: bool) -> Tensor:
        source = self.sources[place]
        if type(source) is int:
            return inputs[source]
        tensor = self.output_tensors[place]
        return tensor if source is not None or not clones else tensor.clone()


def _owns_memory(tensor: Tensor) -> bool:
    """Whether a tensor is contiguous and all there is in its storage, so that it can be bound."""
    return (
        not tensor._is_view()
        and tensor.is_contiguous()
        and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    )


def _own_copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _always() -> bool:
    return True
