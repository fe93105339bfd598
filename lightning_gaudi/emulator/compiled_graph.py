"""One graph that AOTAutograd has traced, run on the plain tensors below dispatch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload

from lightning_gaudi.emulator import inductor, rng
from lightning_gaudi.emulator.graph_books import Books, device_of
from lightning_gaudi.emulator.tensor import HPUTensor, block_of, new_block, unwrap, wrap

_HOST = torch.device("cpu")


class CompiledGraph:
    """One graph of ATen ops, ready to run on HPU tensors.

    Calling it takes the graph's inputs and returns its outputs, which are on the HPU where the
    graph says so. An output that shares memory with an input or with another output shares its
    `Block`.
    """

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self._books = Books(graph_module)
        outputs = graph_module.graph.output_node().args[0]
        assert isinstance(outputs, (tuple, list))
        self._is_on_device = [device_of(node) == "hpu" for node in outputs]
        self._aliases: list[int | None] | None = None
        self._is_random = any(_is_random(node) for node in graph_module.graph.nodes)
        _move_to_host(graph_module)
        self._run: Callable[..., Any] = graph_module.forward
        self._graph_module: fx.GraphModule | None = None
        if inductor.is_requested():
            self._graph_module = graph_module

    def __call__(self, *args: Any) -> Any:
        """Run the graph; it sees neither autograd nor autocast, which were traced."""
        self._books.enter(args)
        plain = [unwrap(value) if isinstance(value, Tensor) else value for value in args]
        if self._graph_module is not None:
            self._lower(self._graph_module, plain)
        drawing = rng.drawing() if self._is_random else nullcontext()
        with torch.no_grad(), torch._C._DisableAutocast(), drawing:
            outputs = self._run(*plain)
        if self._aliases is None:
            self._aliases = _find_aliases(plain, outputs)
        results: list[Any] = []
        for value, is_on_device, source in zip(
            outputs, self._is_on_device, self._aliases, strict=True
        ):
            if not is_on_device or not isinstance(value, Tensor):
                results.append(value)
                continue
            owner = None
            if source is not None:
                owner = args[source] if source < len(args) else results[source - len(args)]
            block = block_of(owner) if type(owner) is HPUTensor else new_block(value)
            # An output may be an input, whose plain tensor is ours alone; `wrap` needs such a one.
            results.append(wrap(value.detach(), block))
        return tuple(results)

    def _lower(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        """Compile the graph with Inductor, if it can be, for inputs like these."""
        self._graph_module = None
        try:
            if not all(isinstance(value, Tensor) for value in inputs):
                raise inductor.NotCompiledError("its shapes are dynamic")
            if self._is_random:
                raise inductor.NotCompiledError(
                    "it draws random numbers, which Inductor would draw otherwise"
                )
            self._run = inductor.compile_graph(graph_module, inputs).call
        except inductor.NotCompiledError as error:
            inductor.warn_once(str(error))


def _is_random(node: fx.Node) -> bool:
    """Whether a node draws from the device's generator, or keeps its state for a second forward."""
    if isinstance(node.target, HigherOrderOperator):
        return "rng_state" in str(node.target)
    if not isinstance(node.target, OpOverload) or device_of(node) == "cpu":
        return False
    is_attention = any(argument.name == "dropout_p" for argument in node.target._schema.arguments)
    return torch.Tag.nondeterministic_seeded in node.target.tags and not is_attention


def _find_aliases(inputs: Sequence[Any], outputs: Sequence[Any]) -> list[int | None]:
    """For each output, the first input or earlier output (counted on) that shares its memory."""
    owners: dict[int, int] = {}
    for place, value in enumerate(inputs):
        if isinstance(value, Tensor):
            owners.setdefault(value.untyped_storage()._cdata, place)
    found: list[int | None] = []
    for place, value in enumerate(outputs, len(inputs)):
        if not isinstance(value, Tensor):
            found.append(None)
            continue
        owner = owners.setdefault(value.untyped_storage()._cdata, place)
        found.append(None if owner == place else owner)
    return found


def _move_to_host(graph_module: fx.GraphModule) -> None:
    """Let a graph, and the graphs in it, make its tensors in host memory, where ours are."""
    for module in graph_module.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in module.graph.nodes:
            node.args = fx.node.map_aggregate(node.args, _on_host)
            node.kwargs = fx.node.map_aggregate(
                {name: value for name, value in node.kwargs.items() if name != "pin_memory"},
                _on_host,
            )
            if node.op == "get_attr":
                value = getattr(module, node.target, None)
                if type(value) is HPUTensor:
                    setattr(module, node.target, unwrap(value))
        module.recompile()


def _on_host(value: Any) -> Any:
    return _HOST if isinstance(value, torch.device) and value.type == "hpu" else value
