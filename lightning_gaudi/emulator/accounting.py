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

import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from torch import Tensor

from lightning_gaudi.emulator import events, mixed_devices
from lightning_gaudi.emulator.compile_reasons import KnownRecipes, NotedOps, Reason
from lightning_gaudi.emulator.ops import OpInfo
from lightning_gaudi.emulator.source import locate, spell
from lightning_gaudi.emulator.strict import is_strict
from lightning_gaudi.emulator.tensor import HPUTensor, block_of

_num_noting = 0  # how many records ask for reasons


class LazyGraph:
    """The ops that wait for the next flush."""

    __slots__ = ("inputs", "num_compute", "ops")

    def __init__(self) -> None:
        self.inputs: list[tuple[Any, ...]] = []
        self.ops: list[tuple[Any, ...]] = NotedOps(self.inputs) if _num_noting else []
        self.num_compute = 0

    def add_input(self, tensor: HPUTensor) -> int:
        """Number a tensor that was made before this graph began: its place there, negative."""
        self.inputs.append((tensor.shape, tensor.dtype, tensor.stride()))
        place = -len(self.inputs)
        tensor._node = (self, place)
        return place


class RecipeCache:
    """Compiled graphs by key, with the figures that the SDK's metrics report."""

    def __init__(self) -> None:
        self._recipes: dict[tuple[Any, ...], int] = {}
        self._num_again: Counter[tuple[Any, ...]] = Counter()  # compilations of a known recipe
        self._known = KnownRecipes()
        self.compiled = KnownRecipes()  # the graphs of torch.compile
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

    @contextmanager
    def emptied(self) -> Iterator[None]:
        """Know no recipe for a while; the counts go on. What is compiled meanwhile stays known."""
        before, known = self._recipes, self.compiled
        self._recipes, self.compiled = {}, KnownRecipes()
        try:
            yield
        finally:
            for key, hits in self._recipes.items():
                if key in before:
                    self._num_again[key] += 1
                before[key] = before.get(key, 0) + hits
            self._recipes, self.compiled = before, known

    def explain(self, graph: LazyGraph, cause: str) -> Reason | None:
        """Why a graph that was not found had to be compiled; None where nobody noted its lines."""
        ops = graph.ops
        if not isinstance(ops, NotedOps):
            return None
        self._known.read(self._recipes)
        return self._known.explain(
            ops, graph.inputs, ops.place_of, ops.reader_of, (cause, spell(locate()))
        )

    def hits_by_recipe(self) -> dict[str, int]:
        """Hits of each recipe that was hit, by its number in order of compilation."""
        return {f"recipe_{i}": hits for i, hits in enumerate(self._recipes.values()) if hits}

    def misses_by_recipe(self) -> dict[str, int]:
        """How often each recipe was compiled: once, and again where it was not to be known."""
        return {f"recipe_{i}": 1 + self._num_again[key] for i, key in enumerate(self._recipes)}


cache = RecipeCache()
fallbacks: dict[str, int] = {}
"""CPU fallbacks so far by op name."""

pending = LazyGraph()
"""The graph that the next op joins."""


@lru_cache(maxsize=1)
def max_ops() -> int | None:
    """The number of ops at which the bridge flushes by itself; None where it waits for a flush.

    Raises:
        ValueError: ``PT_HPU_MAX_COMPOUND_OP_SIZE`` is no whole number of 1 or more.
    """
    value = os.environ.get("PT_HPU_MAX_COMPOUND_OP_SIZE", "")
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(
            "PT_HPU_MAX_COMPOUND_OP_SIZE must be a whole number of ops, 1 or more, but it is "
            f"{value!r}."
        )
    return int(value)


def flush(cause: str) -> None:
    """Close the pending graph, as a flush on the card would; nothing pending, nothing happens."""
    global pending
    graph = pending
    if not graph.ops:
        return
    pending = LazyGraph()
    if graph.num_compute:
        if events.span is None:
            _close(graph, cause)
        else:
            with events.span("flush"):
                _close(graph, cause)
    # Tensors keep their graph, to know that it is not the pending one.
    graph.ops.clear()
    graph.inputs.clear()


def _close(graph: LazyGraph, cause: str) -> None:
    events.emit("flush", cause)
    _compile(graph, cause)


def close_eager(cause: str) -> None:
    """In eager mode: compile the one op that is pending, without an event for the flush."""
    global pending
    graph, pending = pending, LazyGraph()
    if graph.num_compute:
        _compile(graph, cause)
    graph.ops.clear()


def _compile(graph: LazyGraph, cause: str) -> None:
    if not cache.look_up((tuple(graph.ops), tuple(graph.inputs))):
        detail, reason = "", None
        if events.is_recording():
            shapes = ", ".join(f"{list(shape)}:{dtype}" for shape, dtype, _ in graph.inputs)
            detail = f"{len(graph.ops)} ops; inputs {shapes}"
            reason = cache.explain(graph, cause)
        events.emit("compile", cause, detail, reason)


@contextmanager
def noting_lines() -> Iterator[None]:
    """Note where each op is called, so that compilations can be explained."""
    global _num_noting
    _num_noting += 1
    if not isinstance(pending.ops, NotedOps):
        pending.ops = NotedOps(pending.inputs, pending.ops)
    try:
        yield
    finally:
        _num_noting -= 1
        if not _num_noting:
            pending.ops = list(pending.ops)


def is_noting() -> bool:
    """Whether compilations are explained."""
    return _num_noting > 0


def is_pending(tensor: HPUTensor) -> bool:
    """Whether the value of a tensor waits for the next flush."""
    return block_of(tensor).writer is pending


def describe(
    graph: LazyGraph, info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:
    """The op's part of the key of the graph that it is about to join.

    Call it before the op runs, since an op may change the shape of what it writes to.

    Raises:
        RuntimeError: An argument lies on the host.
    """
    part: list[Any] = [info.name]
    ignored = info.ignored
    on_host = 0
    for position, value in enumerate(args):
        kind = type(value)
        if kind is HPUTensor:
            node = value._node
            part.append(node[1] if node[0] is graph else graph.add_input(value))
        elif position in ignored and not isinstance(value, Tensor):
            part.append(kind)
        elif kind is int or value is None:
            part.append(value)
        elif kind is list or kind is tuple:
            items = [_part_of_item(graph, item) for item in value]
            on_host += any(type(item) is _HostTensor for item in items)
            part.append(tuple(items))
        elif isinstance(value, Tensor):
            on_host += value.dim() > 0
            part.append(_HostTensor((value.dtype, value.shape)))
        else:
            part.append((kind, value if value == value else math.nan))  # NaN as itself, once
    for name, value in kwargs.items() if kwargs else ():
        is_ignored = name in ignored or (name in info.ignored_unless_one and value != 1)
        if is_ignored and not isinstance(value, Tensor):
            part.append((name, type(value)))
        else:
            item = _part_of_item(graph, value)
            on_host += type(item) is _HostTensor
            part.append((name, item))
    if on_host:
        value = None  # a further name for an argument, and it would not pass for a helper
        mixed_devices.check(info, args, kwargs)
    return tuple(part)


class _HostTensor(tuple[Any, ...]):
    """What a recipe knows of an operand on the host: dtype and shape, not the value."""

    __slots__ = ()


def _part_of_item(graph: LazyGraph, value: Any) -> Any:
    kind = type(value)
    if kind is HPUTensor:
        node = value._node
        return node[1] if node[0] is graph else graph.add_input(value)
    if kind is int or value is None:
        return value
    if kind is list or kind is tuple:
        return tuple([_part_of_item(graph, item) for item in value])
    if isinstance(value, Tensor):
        return _HostTensor((value.dtype, value.shape))
    return (kind, value if value == value else math.nan)


def fall_back(name: str) -> None:
    """The card has no kernel for an op: it flushes, and the op runs on the host.

    Raises:
        RuntimeError: Strict mode or ``PT_HPU_PLACE_ON_CPU=none`` forbids it.
    """
    if is_strict():
        raise RuntimeError(
            f"aten::{name} has no HPU kernel (hpu_ops.tsv), and LIGHTNING_GAUDI_EMULATOR_STRICT=1 "
            "forbids running it on the CPU. Use another op, or turn strict mode off to allow the "
            "fallback, which costs a flush and two copies on a card."
        )
    if os.environ.get("PT_HPU_PLACE_ON_CPU") == "none":
        raise RuntimeError(
            f"aten::{name} has no HPU kernel and PT_HPU_PLACE_ON_CPU=none forbids running it on "
            "the CPU. Use another op, or unset PT_HPU_PLACE_ON_CPU to allow the fallback."
        )
    fallbacks[name] = fallbacks.get(name, 0) + 1
    flush("cpu_fallback")
    events.emit("cpu_fallback", name)


def before_host_read(cause: str) -> None:
    """The host is about to wait for a value: flush what is pending and count the read."""
    flush(cause)
    events.emit("host_read", cause)
