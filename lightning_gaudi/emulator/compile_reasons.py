"""Why a graph had to be compiled: what differs from the nearest one that was compiled before.

While somebody asks for reasons the pending graph's list of ops is a `NotedOps`, which remembers
where each op was called. Otherwise it is a plain list and an op costs nothing more. What is
compared are the keys of the recipe cache, so graphs of before the record are known too.

A new length changes the shapes that flow in, and with them sizes inside the graph (of views, say).
So shapes are looked at first, and a changed whole number counts as a cause of its own only where
all shapes are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch

from lightning_gaudi.emulator.source import Place, RawPlace, locate, spell

ReasonKind = Literal["shapes", "constant", "ops", "first"]

_MAX_CANDIDATES = 32  # the latest graphs of the same ops, or of other ops, that are compared
_MAX_NAMED = 3
_WHOLE_NUMBERS = re.compile(r"[-\d\[\]\(\), ]+|None")

Ops = Sequence[tuple[Any, ...]]
Inputs = Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeChange:
    """An input of a graph that is not as before.

    Attributes:
        now: Its shape and dtype, ``"[8, 37]:int64"``; strides only where they alone differ.
        before: The same of the nearest known graph.
        op: The first op that reads it.
        line: The user's line of that op, ``"path:number"``.
    """

    now: str
    before: str
    op: str
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a graph was compiled.

    Attributes:
        kind: ``"shapes"``: inputs have shapes, strides or dtypes that are new. ``"constant"``: a
            number or another setting of an op has changed. ``"ops"``: other ops, or in another
            order. ``"first"``: nothing like it was compiled before.
        text: The difference in words.
        op: The op that differs first.
        line: The user's line of that op, ``"path:number"``; without one the library's.
        library: The library's line, where no line of the user asked for that op; else empty.
        shapes: With ``"shapes"``, the inputs that differ.
    """

    kind: ReasonKind
    text: str
    op: str
    line: str
    library: str = ""
    shapes: tuple[ShapeChange, ...] = ()


class NotedOps(list[tuple[Any, ...]]):
    """The ops of a graph with the place where each was called.

    Args:
        inputs: The graph's inputs, a list that grows.
        ops: Ops that joined before anybody asked.

    Attributes:
        places: For each op where it was called; None for those of before.
        num_inputs: For each op how many inputs the graph had when it had joined.
    """

    __slots__ = ("_inputs", "num_inputs", "places")

    def __init__(self, inputs: list[tuple[Any, ...]], ops: Iterable[tuple[Any, ...]] = ()) -> None:
        super().__init__(ops)
        self._inputs = inputs
        self.places: list[RawPlace | None] = [None] * len(self)
        self.num_inputs = [len(inputs)] * len(self)

    def append(self, part: tuple[Any, ...]) -> None:
        """Add an op that has just run."""
        super().append(part)
        self.places.append(locate(stops_at_loop=True))
        self.num_inputs.append(len(self._inputs))

    def clear(self) -> None:
        """Forget everything. Tensors keep their graph, and a loss may be kept of every step."""
        super().clear()
        self.places.clear()
        self.num_inputs.clear()

    def place_of(self, number: int) -> Place:
        """Where an op was called."""
        raw = self.places[number] if number < len(self.places) else None
        return Place("<unknown>", "") if raw is None else spell(raw)

    def reader_of(self, number: int) -> int:
        """The number of the first op that reads an input."""
        readers = (op for op, count in enumerate(self.num_inputs) if count > number)
        return next(readers, 0)


class KnownRecipes:
    """The graphs compiled so far, by the names of their ops."""

    def __init__(self) -> None:
        self._by_names: dict[tuple[str, ...], list[tuple[Ops, Inputs]]] = {}
        self._source: dict[Any, Any] | None = None
        self._num_read = 0

    def add(self, ops: Ops, inputs: Inputs) -> None:
        """Note a compiled graph."""
        names = tuple([part[0] for part in ops])
        # The latest names last, for they are the likeliest to be near.
        same = self._by_names.pop(names, [])
        same.append((ops, inputs))
        self._by_names[names] = same

    def read(self, recipes: dict[Any, Any]) -> None:
        """Note what is new in the recipe cache since the last time, its last entry left out."""
        if recipes is not self._source:
            self.__init__()  # type: ignore[misc]
            self._source = recipes
        for key in islice(recipes, self._num_read, len(recipes) - 1):
            if len(key) == 2:  # others are graphs of torch.compile
                self.add(*key)
        self._num_read = max(0, len(recipes) - 1)

    def explain(
        self,
        ops: Ops,
        inputs: Inputs,
        place_of: Callable[[int], Place],
        reader_of: Callable[[int], int],
        flushed: tuple[str, Place],
    ) -> Reason:
        """Say what is new in a graph that is not among the known ones.

        Args:
            ops: Its ops: name, then arguments as the recipe cache knows them.
            inputs: Shape, dtype and strides of its inputs.
            place_of: Where an op was called.
            reader_of: The first op that reads an input.
            flushed: What ended the graph, and where.
        """
        names = tuple([part[0] for part in ops])
        same = self._by_names.get(names)
        if same:
            known = min(
                reversed(same[-_MAX_CANDIDATES:]),
                key=lambda other: (_distance(inputs, other[1]), _count(ops, other[0])),
            )
            if len(known[1]) == len(inputs) and list(known[1]) != list(inputs):
                return _shapes(ops, inputs, known, place_of, reader_of)
            return _constant(ops, known[0], place_of)
        return self._other_ops(names, place_of, flushed)

    def _other_ops(
        self, names: tuple[str, ...], place_of: Callable[[int], Place], flushed: tuple[str, Place]
    ) -> Reason:
        best: tuple[int, int, tuple[str, ...]] = (0, 0, ())
        for other in islice(reversed(self._by_names), _MAX_CANDIDATES):
            prefix = _shared(names, other)
            suffix = _shared(names[prefix:][::-1], other[prefix:][::-1])
            # Most of both must be the same, or it is another graph altogether.
            if 2 * (prefix + suffix) >= max(len(names), len(other)):
                best = max(best, (prefix + suffix, prefix, other), key=lambda found: found[0])
        _, prefix, other = best
        if not other:
            place = place_of(0)
            ops = f"these {len(names)} ops, from {names[0]} to {names[-1]},"
            text = f"nothing like {ops if len(names) > 1 else names[0]} was compiled before"
            return Reason(
                kind="first", text=text, op=names[0], line=place.line, library=place.library
            )
        if prefix == len(names):
            cause, place = flushed
            text = (
                f"ended by {cause} after {len(names)} ops, where the nearest known graph goes on "
                f"with {other[prefix]}"
            )
            return Reason(
                kind="ops", text=text, op=names[-1], line=place.line, library=place.library
            )
        place = place_of(prefix)
        was = f"has {other[prefix]}" if prefix < len(other) else "ends"
        text = f"op {prefix + 1} of {len(names)} is {names[prefix]}, where the nearest known graph "
        return Reason(
            kind="ops",
            text=text + was,
            op=names[prefix],
            line=place.line,
            library=place.library,
        )


def _count(now: Sequence[Any], before: Sequence[Any]) -> int:
    """How many places differ."""
    if len(now) != len(before):
        return len(now) + len(before)
    return sum(a != b for a, b in zip(now, before, strict=True))


def _distance(now: Inputs, before: Inputs) -> int:
    """How many properties of inputs differ; sizes count one by one."""
    if len(now) != len(before):
        return 1 << 32
    return sum(
        _count(a[0], b[0]) + (a[1] != b[1]) + (a[2] != b[2])
        for a, b in zip(now, before, strict=True)
        if a != b
    )


def _shared(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """How many first items are the same."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def _shapes(
    ops: Ops,
    inputs: Inputs,
    known: tuple[Ops, Inputs],
    place_of: Callable[[int], Place],
    reader_of: Callable[[int], int],
) -> Reason:
    changes: list[ShapeChange] = []
    places: list[Place] = []
    for number, (now, before) in enumerate(zip(inputs, known[1], strict=True)):
        if now == before:
            continue
        with_strides = now[:2] == before[:2]
        reader = reader_of(number)
        places.append(place_of(reader))
        changes.append(
            ShapeChange(
                now=describe_input(now, with_strides),
                before=describe_input(before, with_strides),
                op=ops[reader][0],
                line=places[-1].line,
            )
        )
    unique = list(dict.fromkeys(f"{change.now}, before {change.before}" for change in changes))
    text = "; ".join(unique[:_MAX_NAMED])
    if len(unique) > _MAX_NAMED:
        text += f"; and {len(unique) - _MAX_NAMED} more inputs"
    setting = next(
        (found for found in _changed_settings(ops, known[0]) if not found.is_whole_number), None
    )
    if setting is not None:
        where = place_of(setting.number).line.replace("\\", "/").rpartition("/")[2]
        text += f"; besides, {setting.text} ({where})"
    return Reason(
        kind="shapes",
        text=text,
        op=changes[0].op,
        line=places[0].line,
        library=places[0].library,
        shapes=tuple(changes),
    )


def describe_input(item: tuple[Any, ...], with_strides: bool = False) -> str:
    """An input's shape and dtype as ``"[8, 37]:int64"``."""
    shape, dtype, strides = item
    text = f"{list(shape)}:{str(dtype).removeprefix('torch.')}"
    return f"{text} with strides {list(strides)}" if with_strides else text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    number: int
    text: str
    is_whole_number: bool


def _constant(ops: Ops, known: Ops, place_of: Callable[[int], Place]) -> Reason:
    settings = _changed_settings(ops, known)
    if settings:
        first = settings[0]
        text = "; ".join([setting.text for setting in settings[:_MAX_NAMED]])
        if len(settings) > _MAX_NAMED:
            text += f"; and {len(settings) - _MAX_NAMED} more"
        kind: ReasonKind = "constant"
        number = first.number
    else:
        kind = "ops"
        number = next((n for n, (a, b) in enumerate(zip(ops, known, strict=True)) if a != b), 0)
        text = f"{ops[number][0]} takes a tensor from elsewhere than in the nearest known graph"
    place = place_of(number)
    return Reason(kind=kind, text=text, op=ops[number][0], line=place.line, library=place.library)


def _changed_settings(ops: Ops, known: Ops) -> list[_Setting]:
    """Arguments that are no tensors and differ, in the order of the ops."""
    found: list[_Setting] = []
    for number, (now, before) in enumerate(zip(ops, known, strict=True)):
        if now == before:
            continue
        arguments = _arguments_of(now[0])
        names = [name for name, _ in arguments]
        for place in range(max(len(now), len(before)) - 1):
            a = now[place + 1] if place + 1 < len(now) else None
            b = before[place + 1] if place + 1 < len(before) else None
            if a == b:
                continue
            name, is_tensor = arguments[place] if place < len(arguments) else (str(place), False)
            for item in (a, b):  # keyword arguments carry their names
                if type(item) is tuple and len(item) == 2 and item[0] in names:
                    name, is_tensor = arguments[names.index(item[0])]
            if is_tensor and not (_is_number_part(a) and _is_number_part(b)):
                continue
            found.append(
                _Setting(
                    number=number,
                    text=f"{now[0]}: {name} is {_value(a, name)}, before {_value(b, name)}",
                    is_whole_number=_is_whole(a, name) and _is_whole(b, name),
                )
            )
    return found


def _is_number_part(part: Any) -> bool:
    return type(part) is tuple and len(part) == 2 and part[0] in (float, bool, complex)


def _arguments_of(name: str) -> list[tuple[str, bool]]:
    """Names of an op's arguments, and whether each takes tensors; empty for an unknown op."""
    base, _, overload = name.partition(".")
    namespace, _, base = base.rpartition("::")
    packet = getattr(getattr(torch.ops, namespace or "aten"), base, None)
    op = getattr(packet, overload or "default", None)
    schema = getattr(op, "_schema", None)
    if schema is None:
        return []
    return [(argument.name, "Tensor" in str(argument.type)) for argument in schema.arguments]


def _value(part: Any, name: str) -> str:
    """An argument of a recipe, as the user wrote it."""
    if type(part) is tuple and len(part) == 2:
        kind, value = part
        if kind == name:
            return _value(value, "")
        if isinstance(kind, type):
            return repr(value).removeprefix("torch.")
    if type(part) is tuple:
        return "[" + ", ".join(_value(item, "") for item in part) + "]"
    return part if isinstance(part, str) else repr(part)


def _is_whole(part: Any, name: str) -> bool:
    """Whether an argument is made of whole numbers, as sizes are."""
    if type(part) is tuple and len(part) == 2 and part[0] == name:
        part = part[1]
    if type(part) is tuple:
        return all(_is_whole(item, "") for item in part)
    if isinstance(part, str):  # a graph of torch.compile
        return _WHOLE_NUMBERS.fullmatch(part) is not None
    return type(part) is int or part is None
