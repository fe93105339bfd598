"""The program of an HPU graph: what a capture writes down and a replay runs again.

Ops execute while they are captured, as on the card. A replay runs them again on the same CPU
buffers, below dispatch: an op that writes in place as it was, any other through its ``out=``
overload where it has one and through a copy where not; a view needs nothing, for its buffer is
refreshed by whoever owns it. What the host read during capture stays as it was then: that is the
silent wrong answer that a card gives, and it is reproduced here on purpose.

Memory that the capture made and a step fills before any step reads it is *private*: nothing but
the graph's results may look at it between two replays. A dry run leaves private memory filled with
NaN and puts back what ops wrote to any other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from lightning_gaudi.emulator import accounting, memory, poison, rng
from lightning_gaudi.emulator.errors import GraphCaptureError
from lightning_gaudi.emulator.memory import Block
from lightning_gaudi.emulator.ops import OpInfo
from lightning_gaudi.emulator.out_overloads import find_out_overload
from lightning_gaudi.emulator.tensor import HPUTensor, block_of, unwrap

Step = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Record(NamedTuple):
    """One op as it ran, for whoever turns a program into another form.

    Tensors are plain CPU tensors, a fresh one at each mention: two that are the same value have the
    same storage, offset, shape and strides. `detach` and `alias` leave no record.

    Attributes:
        func: The overload.
        args: Its positional arguments. A copy from the host has the host's values as they were.
        kwargs: Its keyword arguments, without ``out=`` tensors that a replay adds.
        results: Its results in the order of the schema: for an op that writes in place the tensor
            that it wrote to, for a view a tensor on the storage that it looks at.
        is_random: Whether it draws random numbers.
    """

    func: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Any, ...]
    is_random: bool


class Program:
    """The ops of one capture on plain CPU tensors, with the device memory that they live in.

    Args:
        is_dry_run: Whether what the ops write must be undone by `end_dry_run`.

    Attributes:
        is_dry_run: As given.
        steps: What a replay calls, in order.
        blocks: The device memory of every buffer: it stays in use as long as the program.
        private: The private memory among it, each with a plain tensor that lies there.
        written: Device memory that is not private and that an op writes to.
        num_sub_graphs: Into how many recipes flushes have split the capture.
        records: Every op in order, views and writes in place included; None unless
            ``LIGHTNING_GAUDI_EMULATOR_COMPILE=1``, for they hold what a replay does not need.
        broken: Why the capture cannot be used; empty if it can.
    """

    def __init__(self, *, is_dry_run: bool = False) -> None:
        self.steps: list[Step] = []
        self.blocks: set[Block] = set()
        self.private: dict[Block, Tensor] = {}
        self.written: set[Block] = set()
        self.num_sub_graphs = 0
        self.broken = ""
        is_compiled = os.environ.get("LIGHTNING_GAUDI_EMULATOR_COMPILE") == "1"
        self.records: list[Record] | None = [] if is_compiled else None
        self.is_dry_run = is_dry_run
        self._before: dict[Block, tuple[Tensor, Tensor]] = {}
        self._generators: dict[torch.Generator, Tensor] = {}
        if is_dry_run:
            self._rng_state = rng.get_rng_state()
        self._num_births = memory.num_births()
        self._sub_graph: Any = None

    def before_write(self, info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of an op that is about to write to its arguments."""
        if not self.is_dry_run:
            return
        for target in written_tensors(info, args, kwargs):
            self._save(target)
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Generator) and value not in self._generators:
                self._generators[value] = value.get_state()

    def add(self, info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Write down an op that has just run with these arguments and results."""
        if info.writes or info.name in _SILENT_WRITES:
            self._note_writes(info, args, kwargs)
        plain_args = self._plain(args)
        plain_kwargs = {name: self._plain(value) for name, value in kwargs.items()}
        results = [out] if isinstance(out, Tensor) else list(out or ())
        if info.may_alias and not info.writes and all(self._is_view(r, args) for r in results):
            if self.records is not None:
                self._record(info.func, plain_args, plain_kwargs, self._plain(tuple(results)))
            return
        if accounting.pending is not self._sub_graph:
            self._sub_graph = accounting.pending
            self.num_sub_graphs += 1
        plain_results = [self._result(result) for result in results]
        if self.records is not None:
            self._record(info.func, plain_args, plain_kwargs, tuple(plain_results))
        if info.writes:
            # Some ops write to an argument and make something new as well (rrelu's noise).
            given = (*args, *kwargs.values())
            fresh = [
                None if self._is_view(result, given) else plain
                for result, plain in zip(results, plain_results, strict=True)
            ]
            if any(result is not None for result in fresh):
                self.steps.append((_run_and_copy, (info.call, fresh, plain_args, plain_kwargs), {}))
            else:
                self.steps.append((info.call, plain_args, plain_kwargs))
            return
        if not results:  # nothing to refresh, as for an assertion on the device
            self.steps.append((info.call, plain_args, plain_kwargs))
            return
        out_overload = find_out_overload(info.func)
        # An out variant cannot leave a result out, as an LSTM without a workspace does.
        if out_overload is not None and all(result is not None for result in results):
            call, names = out_overload
            plain_kwargs.update(zip(names, plain_results, strict=True))
            self.steps.append((call, plain_args, plain_kwargs))
        else:
            self.steps.append(
                (_run_and_copy, (info.call, plain_results, plain_args, plain_kwargs), {})
            )

    def add_constant(self, target: HPUTensor, source: Tensor) -> None:
        """Write down a copy from the host that is about to run; replays copy its values of now."""
        if self.is_dry_run:
            self._save(target)
        args = (self._result(target), source.detach().clone())
        self.steps.append((_copy._op, args, {}))
        if self.records is not None:
            self._record(_copy, args, {}, args[:1])

    def add_collective(
        self, info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Write down a collective that has just run; a replay waits until it is done."""
        plain_args = self._plain(args)
        plain_kwargs = {name: self._plain(value) for name, value in kwargs.items()}
        self.written.update(map(block_of, written_tensors(info, args, kwargs)))
        given = tuple(_leaves((args, tuple(kwargs.values()))))
        results = [None if self._is_view(r, given) else self._result(r) for r in _leaves(out)]
        self.steps.append((_run_collective, (info.call, results, plain_args, plain_kwargs), {}))

    def refuse_fallback(self, info: OpInfo) -> None:
        """Raise as the bridge does for an op without a kernel inside a capture."""
        raise RuntimeError(
            f"cpu fallback is not supported during hpu graph capturing: aten::{info.name} has no "
            "HPU kernel. Move it out of the captured forward."
        )

    def check_collective(self, info: OpInfo) -> None:
        """Raise where a card would hang or skip a collective at a replay (CARD.md 14).

        Raises:
            GraphCaptureError: ``PT_HPU_ENABLE_LAZY_COLLECTIVES`` is not true.
        """
        if os.environ.get("PT_HPU_ENABLE_LAZY_COLLECTIVES", "").lower() not in ("1", "true"):
            raise GraphCaptureError(
                f"{info.name} inside a capture: a card captures a collective only where "
                "PT_HPU_ENABLE_LAZY_COLLECTIVES is true, and otherwise leaves it out of the graph. "
                "Export PT_HPU_ENABLE_LAZY_COLLECTIVES=true before Python starts, or move it out "
                "of the captured forward."
            )

    def end_dry_run(self) -> None:
        """Undo what the ops wrote to memory from before, and hide what they computed."""
        for memory_now, memory_before in self._before.values():
            memory_now.copy_(memory_before)
        self._before.clear()
        for generator, state in self._generators.items():
            generator.set_state(state)
        self._generators.clear()
        rng.set_rng_state(self._rng_state)
        for plain in self.private.values():
            poison.fill(poison.storage_of(plain))

    def run(self) -> None:
        """Run the ops again. Casts were captured too, so autocast is off; autograd sees nothing.

        In inference mode, because a forward captured in it left tensors that only it may change.
        """
        with torch.inference_mode(), torch._C._DisableAutocast():
            for func, args, kwargs in self.steps:
                func(*args, **kwargs)

    def tensors(self) -> Iterator[Tensor]:
        """Every mention of a plain tensor in the steps."""
        for _, args, kwargs in self.steps:
            yield from _leaves(args)
            yield from _leaves(tuple(kwargs.values()))

    def _note_writes(self, info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # What is written to by keyword is an ``out=``.
        is_filled = info.name.partition(".")[0] in _FILLS or str in map(type, info.writes)
        for tensor in written_tensors(info, args, kwargs):
            if is_filled:
                self._result(tensor)
            if block_of(tensor) not in self.private:
                self.written.add(block_of(tensor))

    def _save(self, tensor: HPUTensor) -> None:
        block = block_of(tensor)
        if block.birth <= self._num_births and block not in self._before:
            flat = poison.storage_of(tensor, torch.uint8)
            self._before[block] = (flat, flat.clone())

    def _record(
        self,
        func: OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: tuple[Any, ...],
    ) -> None:
        assert self.records is not None
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        # A step may add its outputs to the keywords later, hence a dict of its own.
        self.records.append(Record(func, args, dict(kwargs), results, is_random))

    def _plain(self, value: Any) -> Any:
        if type(value) is HPUTensor:
            self.blocks.add(block_of(value))
            return unwrap(value)
        if type(value) is tuple or type(value) is list:
            return type(value)(self._plain(item) for item in value)
        return value

    def _result(self, value: Any) -> Any:
        """The plain tensor of something that an op fills; private if it is met here first."""
        if type(value) is not HPUTensor:
            return value
        block, plain = block_of(value), unwrap(value)
        if block not in self.blocks:
            self.blocks.add(block)
            if block.birth > self._num_births:
                self.private[block] = plain
        return plain

    @staticmethod
    def _is_view(result: Any, args: tuple[Any, ...]) -> bool:
        return type(result) is not HPUTensor or any(
            type(value) is HPUTensor and value._block is result._block for value in args
        )


_copy = torch.ops.aten.copy_.default
# Ops that write to all of an argument without reading it.
_FILLS = frozenset(
    {
        "bernoulli_",
        "cauchy_",
        "copy_",
        "exponential_",
        "fill_",
        "geometric_",
        "log_normal_",
        "normal_",
        "random_",
        "uniform_",
        "zero_",
    }
)

# Ops that write to the arguments at these positions without a word in their schema.
_SILENT_WRITES = {"native_batch_norm": (3, 4)}

current: Program | None = None
"""The capture in progress, if any. One at a time in a process."""


def written_tensors(
    info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[HPUTensor]:
    """The HPU tensors among an op's arguments that it writes to.

    Schemas of ``c10d`` do not say which those are; there it may be any.
    """
    if info.func.namespace == "c10d":
        given = (*args, *kwargs.values())
        yield from (tensor for tensor in _leaves(given) if type(tensor) is HPUTensor)
        return
    for position in info.writes or _SILENT_WRITES.get(info.name, ()):
        target = kwargs.get(position) if isinstance(position, str) else args[position]
        yield from (tensor for tensor in _leaves(target) if type(tensor) is HPUTensor)


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)


def _run_and_copy(
    call: Callable[..., Any], results: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    fresh = call(*args, **kwargs)
    for old, new in zip(results, [fresh] if isinstance(fresh, Tensor) else fresh, strict=True):
        if isinstance(old, Tensor):
            old.copy_(new)


def _run_collective(
    call: Callable[..., Any], results: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    fresh = call(*args, **kwargs)
    for item in fresh if isinstance(fresh, tuple) else ():
        if hasattr(item, "wait"):
            item.wait()
    for old, new in zip(results, _leaves(fresh), strict=True):
        if isinstance(old, Tensor):
            old.copy_(torch.ops._c10d_functional.wait_tensor(new))
