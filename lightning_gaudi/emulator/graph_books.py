"""The books of a compiled graph: what a card would note each time the graph runs.

A graph is one recipe: compiled when it first runs with new shapes, found in the recipe cache after
that (bridge 1.19.0, dynamo/compile_backend/recipe_compiler.py compiles at the first launch). An op
without a kernel on the card, a host read and a collective each end a recipe, as they end a cluster
of the bridge's partitioner.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from lightning_gaudi.emulator import accounting, events
from lightning_gaudi.emulator.ops import OpInfo, OpKind
from lightning_gaudi.emulator.source import Place, innermost, locate, spell

_CAUSE = "hpu_backend"
_FRAME = re.compile(r'File "(.+)", line (\d+)')


def device_of(node: Any) -> str:
    """The type of the device that a traced node's result is on; empty if it is no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.device.type if isinstance(value, Tensor) else ""


class Books:
    """What a card would note at each run of a graph: recipes, fallbacks, transfers, host reads."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self._has_symbols = False
        self._notes: list[tuple[str, str]] = []
        self._detail = ""
        self._ops: list[tuple[Any, ...]] = []
        self._places: list[Place] = []
        text = hashlib.sha256()
        shapes: list[str] = []
        num_pending = 0
        num_ops = 0
        for node in graph_module.graph.nodes:
            value = node.meta.get("val")
            text.update(f"{node.name}={node.target}{node.args}{node.kwargs}".encode())
            if node.op == "placeholder":
                if isinstance(value, Tensor):
                    shapes.append(f"{list(value.shape)}:{value.dtype}")
                    text.update(f"{shapes[-1]}{value.stride()}".encode())
                else:
                    self._has_symbols = True
            elif node.op == "call_function" and isinstance(node.target, OpOverload):
                num_ops += 1
                info = OpInfo(node.target)
                self._ops.append(_part_of(info.name, node))
                self._places.append(_place_of(node))
                num_pending = self._note(node, info, num_pending)
        if num_pending:
            self._notes.append(("recipe", ""))
        self._key = text.hexdigest()
        self._detail = f"{num_ops} ops; inputs {', '.join(shapes)}"

    def _note(self, node: fx.Node, info: OpInfo, num_pending: int) -> int:
        """Note one op; returns how many ops wait for the end of the present recipe."""
        sources = {device_of(source) for source in node.all_input_nodes} - {""}
        target = device_of(node)
        kind = ""
        if info.kind in (OpKind.HOST_READ, OpKind.DATA_DEPENDENT) and "hpu" in sources:
            kind = "host_read"
        elif info.kind is OpKind.COLLECTIVE:
            kind = "collective"
        elif sources == {"cpu"} and target == "hpu":
            kind = "h2d"
        elif sources == {"hpu"} and target == "cpu":
            kind = "d2h"
        elif "hpu" not in sources and target != "hpu":
            return num_pending  # the host's own work
        elif not info.has_card_kernel:
            kind = "fallback"
        elif info.kind is OpKind.COMPUTE:
            return num_pending + (not info.may_alias)
        if not kind:
            return num_pending
        if num_pending and kind != "h2d":
            self._notes.append(("recipe", ""))
            num_pending = 0
        self._notes.append((kind, info.name))
        return num_pending

    def enter(self, inputs: Sequence[Any]) -> None:
        """Note one run with these inputs.

        Raises:
            RuntimeError: An op has no kernel on the card, and ``PT_HPU_PLACE_ON_CPU=none``.
        """
        for place, (kind, name) in enumerate(self._notes):
            if kind == "recipe":
                self._launch(place, inputs)
            elif kind == "fallback":
                accounting.fall_back(name)
            elif kind == "host_read":
                accounting.before_host_read(name)
            elif kind in ("h2d", "d2h"):
                events.emit("h2d" if kind == "h2d" else "d2h", name)

    def _launch(self, place: int, inputs: Sequence[Any]) -> None:
        key: tuple[Any, ...] = (_CAUSE, self._key, place)
        detail = self._detail
        if self._has_symbols:
            shapes = [value.shape if isinstance(value, Tensor) else value for value in inputs]
            key = (*key, tuple(shapes))
            detail = f"inputs {[list(s) if isinstance(s, torch.Size) else s for s in shapes]}"
        if not accounting.cache.look_up(key):
            known = accounting.cache.compiled
            tensors = [value for value in inputs if isinstance(value, Tensor)]
            described = [(tensor.shape, tensor.dtype, tensor.stride()) for tensor in tensors]
            reason = None
            if accounting.is_noting() and self._ops:
                reason = known.explain(
                    self._ops,
                    described,
                    self._places.__getitem__,
                    lambda number: 0,
                    (_CAUSE, spell(locate())),
                )
            known.add(self._ops, described)
            events.emit("compile", _CAUSE, detail, reason)


def _part_of(name: str, node: fx.Node) -> tuple[Any, ...]:
    """An op with its arguments as a recipe knows them; tensors by the name of what made them."""
    settings = [(key, str(value)) for key, value in node.kwargs.items() if key != "device"]
    return (name, *map(str, node.args), *settings)


def _place_of(node: fx.Node) -> Place:
    """The line that Dynamo traced a node from, of the stack that it kept."""
    frames = [(path, int(number)) for path, number in _FRAME.findall(node.stack_trace or "")]
    return innermost(reversed(frames)) or spell(locate())
