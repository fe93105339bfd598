"""Turn a captured program into one function that Inductor has compiled.

The records of a capture (`capture.Record`) become an ``fx.Graph``, op for op. Views and writes in
place stay what they are, for PyTorch's functionalization to resolve.

- A tensor of a record is told by where it lies: storage, offset, shape, strides, dtype.
- Memory from outside the capture (parameters, inputs, caches) is an input of the graph, read at
  each replay, so that weights changed in place are seen. Where it is written to and met in several
  shapes, the graph gets all of it once and looks at it through strides.
- Private memory (`capture.Program.private`) is computed inside. What somebody outside still holds,
  as far as its `Block` tells, is copied to where it lay; the rest needs no memory any more.

What the host read during the capture is a constant here as it is there. Some programs stay as they
are, and a warning says why: those that draw random numbers, since Inductor would draw others; with
a collective; with inputs that each replay gives anew; and whatever Inductor gives up on.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from lightning_gaudi.emulator import capture, inductor, poison
from lightning_gaudi.emulator.capture import Program, Record
from lightning_gaudi.emulator.memory import Block

_aten = torch.ops.aten
Key = tuple[Any, ...]


def lower(program: Program, *, is_bound: bool = False) -> str:
    """Compile what a capture wrote down, if it can be; otherwise leave it as it is, and warn.

    Args:
        program: The capture; its `records` are gone afterwards.
        is_bound: Whether each replay brings inputs of its own (``replayV3``).

    Returns:
        What happened, for the event of the capture: empty, or text that begins with a semicolon.
    """
    records, program.records = program.records, None
    if not records or program.broken:
        return ""
    try:
        _check(program, records, is_bound or program.is_dry_run)
        builder = _GraphBuilder(program, records)
        compiled = inductor.compile_graph(builder.graph_module, builder.inputs)
    except inductor.NotCompiledError as error:
        inductor.warn_once(str(error))
        return f"; not compiled: {error}"
    program.steps = [(compiled.call, tuple(builder.inputs), {})]
    program.blocks &= builder.needed
    for block in [block for block in program.private if block not in builder.needed]:
        del program.private[block]
    return f"; compiled in {compiled.seconds:.1f} s for {len(builder.inputs)} tensors"


def _check(program: Program, records: list[Record], is_bound: bool) -> None:
    if is_bound:
        raise inductor.NotCompiledError("its inputs are given anew at each replay")
    if any(call is capture._run_collective for call, _, _ in program.steps):
        raise inductor.NotCompiledError("a collective, which waits for other processes")
    for record in records:
        if record.is_random and not _has_no_dropout(record):
            raise inductor.NotCompiledError(
                f"{record.func} draws random numbers, which Inductor would draw otherwise"
            )


def _has_no_dropout(record: Record) -> bool:
    """Whether an op would draw for dropout only, whose probability is 0: attention."""
    names = [argument.name for argument in record.func._schema.arguments]
    if "dropout_p" not in names:
        return False
    place = names.index("dropout_p")
    given = record.args[place] if place < len(record.args) else 0.0
    return bool(record.kwargs.get("dropout_p", given) == 0.0)


class _GraphBuilder:
    """The graph of a program.

    Attributes:
        graph_module: The graph; it returns nothing and writes its results to its inputs.
        inputs: The plain tensors that it takes, in order.
        needed: The device memory that those lie in.
    """

    def __init__(self, program: Program, records: list[Record]) -> None:
        self.inputs: list[Tensor] = []
        self._graph = fx.Graph()
        # Inputs come first in a graph, and are found out last.
        self._start = self._graph.call_function(_aten.empty.memory_format, ([0],))
        self._nodes: dict[Key, fx.Node] = {}
        self._whole: dict[int, fx.Node] = {}
        self._taken: set[int] = set()
        visible = _visible_blocks(program)
        self._hidden = {
            _place_of(plain) for block, plain in program.private.items() if block not in visible
        }
        self._shared = self._find_shared(program, records)
        for record in records:
            self._add(record)
        for block in visible:
            self._write_back(program.private[block])
        self._graph.erase_node(self._start)
        self._graph.output(())
        self._graph.lint()
        self.graph_module = fx.GraphModule(torch.nn.Module(), self._graph)
        self.needed = (program.blocks - program.private.keys()) | visible

    def _find_shared(self, program: Program, records: list[Record]) -> set[int]:
        """Storages that are written to and that the graph would otherwise take in several pieces.

        Raises:
            NotCompiledError: One op has given two results that share memory, which is written to.
        """
        written: set[int] = set()
        made: set[Key] = set()
        pieces: dict[int, set[Key]] = {}
        for record in records:
            for tensor in _leaves((record.args, tuple(record.kwargs.values()))):
                if _key_of(tensor) not in made:
                    pieces.setdefault(_place_of(tensor), set()).add(_key_of(tensor))
            written.update(_place_of(tensor) for tensor in _written_tensors(record))
            made.update(_key_of(tensor) for tensor in _leaves(record.results))
        places = [_place_of(plain) for plain in program.private.values() if plain.numel()]
        if any(places.count(place) > 1 for place in written):
            raise inductor.NotCompiledError("two results of an op share memory that is written to")
        return {place for place in written if len(pieces.get(place, ())) > 1}

    def _add(self, record: Record) -> None:
        args = fx.node.map_aggregate(record.args, self._argument)
        kwargs = fx.node.map_aggregate(record.kwargs, self._argument)
        node = self._graph.call_function(record.func, args, kwargs)
        returns = record.func._schema.returns
        if len(returns) == 1 and isinstance(returns[0].type, torch.TensorType):
            self._enter(record.results[0], node)
            return
        for place, result in enumerate(record.results):
            if isinstance(result, Tensor):
                self._enter(result, self._graph.call_function(operator.getitem, (node, place)))

    def _enter(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[_key_of(tensor)] = node
        self._whole.setdefault(_place_of(tensor), node)

    def _argument(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        key = _key_of(value)
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = self._find(value)
        return node

    def _find(self, tensor: Tensor) -> fx.Node:
        """The node of a tensor that no record has made in this form."""
        place = _place_of(tensor)
        whole = self._whole.get(place)
        if whole is None:
            if place in self._hidden:
                flat = poison.storage_of(tensor)
                whole = self._graph.call_function(
                    _aten.empty.memory_format, ([flat.numel()],), {"dtype": flat.dtype}
                )
            elif place in self._shared:
                whole = self._add_input(poison.storage_of(tensor))
                self._taken.add(place)
            else:
                self._taken.add(place)
                return self._add_input(tensor)
            self._whole[place] = whole
        if tensor.is_conj() or tensor.is_neg():
            raise inductor.NotCompiledError("a conjugate view of memory from outside the capture")
        self._check_dtype(place, tensor.dtype)
        return self._graph.call_function(
            _aten.as_strided.default,
            (whole, list(tensor.shape), list(tensor.stride()), tensor.storage_offset()),
        )

    def _check_dtype(self, place: int, dtype: torch.dtype) -> None:
        for key in self._nodes:
            if key[0] == place and key[4] is not dtype:
                raise inductor.NotCompiledError("memory that is taken for two dtypes")

    def _add_input(self, tensor: Tensor) -> fx.Node:
        with self._graph.inserting_before(self._start):
            node = self._graph.placeholder(f"input_{len(self.inputs)}")
        self.inputs.append(tensor)
        return node

    def _write_back(self, plain: Tensor) -> None:
        """Refresh memory that somebody outside looks at; an input has been written to itself."""
        if _place_of(plain) not in self._taken:
            value = self._nodes[_key_of(plain)]
            self._graph.call_function(_aten.copy_.default, (self._add_input(plain), value))


def _visible_blocks(program: Program) -> set[Block]:
    """The private memory in which a tensor from outside the program lies."""
    blocks = list(program.private)
    holders = [value for value in vars(program).values() if isinstance(value, (set, dict))]
    (from_here,) = _count_references([object()])
    return {
        block
        for block, references in zip(blocks, _count_references(blocks), strict=True)
        if references > from_here + sum(block in holder for holder in holders)
    }


def _count_references(items: Sequence[object]) -> list[int]:
    # One place for both, as the references that a call itself makes depend on the Python.
    return [sys.getrefcount(item) for item in items]


def _key_of(tensor: Tensor) -> Key:
    return (
        _place_of(tensor),
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def _place_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)


def _written_tensors(record: Record) -> Iterator[Tensor]:
    for position, argument in enumerate(record.func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = record.args[position] if position < len(record.args) else None
            yield from _leaves(record.kwargs.get(argument.name, given))
