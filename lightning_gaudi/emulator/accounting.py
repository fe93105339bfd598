"""What a lazy card would compile: the pending graph, the recipe cache, and what flushes.

Ops run at once; this only keeps the books. The ops since the last flush form a graph. A flush
looks the graph up in the recipe cache, by its ops, constants and connections and by the shapes,
strides and dtypes of what flows in, and counts a hit or a compilation. Shapes inside the graph
follow from those and are not compared.

A tensor knows its place in the pending graph through ``tensor._node = (graph, place)``: a place
of 0 or more is the op that made it, a negative one the input that it is. A node of an older graph
is an input to this one.

In eager mode every op is a graph of its own.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator import capture, events
from lightning_gaudi.emulator.ops import OpInfo
from lightning_gaudi.emulator.tensor import HPUTensor, block_of, wrap


class LazyGraph:
    """The ops that wait for the next flush."""

    __slots__ = ("inputs", "num_compute", "ops")

    def __init__(self) -> None:
        self.ops: list[tuple[Any, ...]] = []
        self.inputs: list[tuple[Any, ...]] = []
        self.num_compute = 0

    def add_input(self, tensor: HPUTensor) -> tuple[LazyGraph, int]:
        """Number a tensor that was made before this graph began."""
        self.inputs.append((tensor.shape, tensor.dtype, tensor.stride()))
        node = tensor._node = (self, -len(self.inputs))
        return node


class RecipeCache:
    """Compiled graphs by key, with the figures that the SDK's metrics report."""

    def __init__(self) -> None:
        self._recipes: dict[tuple[Any, ...], int] = {}
        self.num_compilations = 0
        self.num_hits = 0

    def look_up(self, key: tuple[Any, ...]) -> bool:
        """Count a hit or a compilation; True for a hit."""
        if key in self._recipes:
            self.num_hits += 1
            self._recipes[key] += 1
            return True
        self.num_compilations += 1
        self._recipes[key] = 0
        return False

    def hits_by_recipe(self) -> dict[str, int]:
        """Hits of each recipe that was hit, by its number in order of compilation."""
        return {f"recipe_{i}": hits for i, hits in enumerate(self._recipes.values()) if hits}

    def misses_by_recipe(self) -> dict[str, int]:
        """One miss for each recipe: the one that compiled it."""
        return {f"recipe_{i}": 1 for i in range(len(self._recipes))}


cache = RecipeCache()
fallbacks: dict[str, int] = {}
"""CPU fallbacks so far by op name."""

_pending = LazyGraph()


def pending() -> LazyGraph:
    """The graph that the next op joins."""
    return _pending


def flush(cause: str) -> None:
    """Close the pending graph, as a flush on the card would; nothing pending, nothing happens."""
    global _pending
    graph = _pending
    if not graph.ops:
        return
    _pending = LazyGraph()
    if graph.num_compute == 0:
        return
    events.emit("flush", cause)
    _compile(tuple(graph.ops), tuple(graph.inputs), cause)


def _compile(ops: tuple[Any, ...], inputs: tuple[Any, ...], cause: str) -> None:
    if not cache.look_up((ops, inputs)):
        detail = ""
        if events.is_recording():
            shapes = ", ".join(f"{list(shape)}:{dtype}" for shape, dtype, _ in inputs)
            detail = f"{len(ops)} ops; inputs {shapes}"
        events.emit("compile", cause, detail)


def is_pending(tensor: HPUTensor) -> bool:
    """Whether the value of a tensor waits for the next flush."""
    return block_of(tensor).writer is _pending


def describe(
    graph: LazyGraph, info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """The op's part of the key of the graph that it is about to join.

    Call it before the op runs, since an op may change the shape of what it writes to.

    Raises:
        RuntimeError: An argument lies on the host.
    """
    ignored = info.ignored
    parts: list[Any] = [info.name]
    if info.takes_host_indices:
        return (info.name, *[_index_part(graph, value) for value in args])
    for position, value in enumerate(args):
        parts.append(_part(graph, value, position in ignored))
    for name, value in kwargs.items():
        is_ignored = name in ignored or (
            name == "value" and info.ignored_unless_one and value != 1
        )
        parts.append((name, _part(graph, value, is_ignored)))
    return tuple(parts)


def _part(graph: LazyGraph, value: Any, is_ignored: bool) -> Any:
    kind = type(value)
    if kind is HPUTensor:
        node = value._node
        return (node if node[0] is graph else graph.add_input(value))[1]
    if kind is int or value is None:
        return kind if is_ignored else value
    if kind is list or kind is tuple:
        return tuple([_part(graph, item, is_ignored) for item in value])
    if isinstance(value, Tensor):
        if value.dim():
            _refuse_if_foreign(value)
        # A zero-dimensional CPU tensor is an operand like any other; its value does not matter.
        return (value.dtype, value.shape)
    return kind if is_ignored else (kind, value)


def _index_part(graph: LazyGraph, value: Any) -> Any:
    """Like `_part` for indexing, whose index tensors may lie on the host as on any device."""
    if type(value) in (list, tuple):
        return tuple(
            (item.dtype, item.shape) if type(item) is Tensor else _part(graph, item, False)
            for item in value
        )
    return _part(graph, value, False)


def _refuse_if_foreign(value: Tensor) -> None:
    """Refuse a tensor that the user made on the host, as PyTorch refuses two devices.

    C++ takes our tensors for CPU tensors, so a composite op may make itself a helper tensor "on the
    same device" that arrives here without our type. Nothing in Python refers to such a helper but
    this call, and that is how it is told from a tensor of the user's.
    """
    references = sys.getrefcount(value)
    if _calibration is not None:
        _calibration.append(references)
    elif references > _helper_references():
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            'hpu:0 and cpu! Move the CPU tensor first: tensor.to("hpu").'
        )


_calibration: list[int] | None = None


@lru_cache(maxsize=1)
def _helper_references() -> int:
    """References to a helper tensor when it arrives above; the number depends on the Python."""
    global _calibration, _pending, cache
    seen: list[int] = []
    kept = (_pending, cache, capture.current)
    _pending, cache, capture.current, _calibration = LazyGraph(), RecipeCache(), None, seen
    try:
        with events.muted(), torch.inference_mode(False), torch.no_grad():
            torch.quantile(wrap(torch.arange(3.0)), 0.5)  # makes itself a tensor of ranks
    finally:
        (_pending, cache, capture.current), _calibration = kept, None
    return max(seen)


def commit(graph: LazyGraph, part: tuple[Any, ...], is_compute: bool) -> int:
    """Add an op that has run; returns its place in the graph."""
    graph.ops.append(part)
    if is_compute:
        graph.num_compute += 1
    return len(graph.ops) - 1


def fall_back(name: str) -> None:
    """The card has no kernel for an op: it flushes, and the op runs on the host.

    Raises:
        RuntimeError: ``PT_HPU_PLACE_ON_CPU=none`` forbids it.
    """
    if os.environ.get("PT_HPU_PLACE_ON_CPU") == "none":
        raise RuntimeError(
            f"aten::{name} has no HPU kernel and PT_HPU_PLACE_ON_CPU=none forbids running it on "
            "the CPU. Use another op, or unset PT_HPU_PLACE_ON_CPU to allow the fallback."
        )
    fallbacks[name] = fallbacks.get(name, 0) + 1
    flush("cpu_fallback")
    events.emit("cpu_fallback", name)


def commit_eager(graph: LazyGraph, cause: str) -> None:
    """In eager mode: compile the one op that the graph holds, without an event for the flush."""
    global _pending
    _pending = LazyGraph()
    if graph.num_compute:
        _compile(tuple(graph.ops), tuple(graph.inputs), cause)


def before_host_read(cause: str) -> None:
    """The host is about to wait for a value: flush what is pending and count the read."""
    flush(cause)
    events.emit("host_read", cause)

