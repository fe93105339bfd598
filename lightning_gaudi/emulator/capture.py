"""The program of an HPU graph: what a capture writes down and a replay runs again.

Ops execute while they are captured, as on the card. A replay runs them again on the same CPU
buffers, below dispatch: an op that writes in place as it was, any other through its ``out=``
overload where it has one and through a copy where not; a view needs nothing, for its buffer is
refreshed by whoever owns it. What the host read during capture stays as it was then: that is the
silent wrong answer that a card gives, and it is reproduced here on purpose.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

from lightning_gaudi.emulator.memory import Block
from lightning_gaudi.emulator.ops import OpInfo
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

    Attributes:
        steps: What a replay calls, in order.
        blocks: The device memory of every buffer: it stays in use as long as the program.
        baked: Names of ops whose result was read by the host and is now a constant.
        records: Every op in order, views and writes in place included; None unless
            ``LIGHTNING_GAUDI_EMULATOR_COMPILE=1``, for they hold what a replay does not need.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        is_compiled = os.environ.get("LIGHTNING_GAUDI_EMULATOR_COMPILE") == "1"
        self.records: list[Record] | None = [] if is_compiled else None
        self.blocks: set[Block] = set()
        self.baked: list[str] = []
        self.broken = ""

    def add(self, info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Write down an op that has just run with these arguments and results."""
        plain_args = self._plain(args)
        plain_kwargs = {name: self._plain(value) for name, value in kwargs.items()}
        if self.records is not None:
            self._record(info.func, plain_args, plain_kwargs, out)
        if info.writes:
            # Some ops write to an argument and make something new as well (rrelu's noise).
            given = (*args, *kwargs.values())
            fresh = [
                None if self._is_view(result, given) else self._plain(result)
                for result in ([out] if isinstance(out, Tensor) else list(out or ()))
            ]
            if any(result is not None for result in fresh):
                self.steps.append((_run_and_copy, (info.func, fresh, plain_args, plain_kwargs), {}))
            else:
                self.steps.append((info.func, plain_args, plain_kwargs))
            return
        results = [out] if isinstance(out, Tensor) else list(out or ())
        if not results:  # nothing to refresh, as for an assertion on the device
            self.steps.append((info.func, plain_args, plain_kwargs))
            return
        if info.may_alias and all(self._is_view(result, args) for result in results):
            return
        plain_results = [self._plain(result) for result in results]
        out_names = _out_overload(info.func)
        # An out variant cannot leave a result out, as an LSTM without a workspace does.
        if out_names is not None and all(result is not None for result in results):
            func, names = out_names
            plain_kwargs.update(zip(names, plain_results, strict=True))
            self.steps.append((func, plain_args, plain_kwargs))
        else:
            self.steps.append(
                (_run_and_copy, (info.func, plain_results, plain_args, plain_kwargs), {})
            )

    def add_constant(self, target: HPUTensor, source: Tensor) -> None:
        """Write down a copy from the host; its values now are what every replay copies."""
        args = (self._plain(target), source.detach().clone())
        self.steps.append((_copy, args, {}))
        if self.records is not None:
            self._record(_copy, args, {}, target)

    def bake(self, info: OpInfo) -> None:
        """Note an op whose result the host has read; a replay does not run it."""
        self.baked.append(info.name)

    def refuse_fallback(self, info: OpInfo) -> None:
        """Raise as the bridge does for an op without a kernel inside a capture."""
        raise RuntimeError(
            f"cpu fallback is not supported during hpu graph capturing: aten::{info.name} has no "
            "HPU kernel. Move it out of the captured forward."
        )

    def refuse_collective(self, info: OpInfo) -> None:
        """Raise where a card would hang or skip the collective at a replay (CARD.md 14)."""
        raise RuntimeError(
            f"{info.name} inside a capture: a collective is captured only where "
            "PT_HPU_ENABLE_LAZY_COLLECTIVES is true on a card, and never on the emulated HPU. Move "
            "it out of the captured forward."
        )

    def run(self) -> None:
        """Run the ops again. Casts were captured too, so autocast is off; autograd sees nothing."""
        with torch._C._AutoDispatchBelowAutograd(), torch._C._DisableAutocast():
            for func, args, kwargs in self.steps:
                func(*args, **kwargs)

    def _record(
        self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        assert self.records is not None
        results = (out,) if isinstance(out, Tensor) else tuple(out or ())
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        # A step may add its outputs to the keywords later, hence a dict of its own.
        self.records.append(Record(func, args, dict(kwargs), self._plain(results), is_random))

    def _plain(self, value: Any) -> Any:
        if type(value) is HPUTensor:
            self.blocks.add(block_of(value))
            return unwrap(value)
        if type(value) is tuple or type(value) is list:
            return type(value)(self._plain(item) for item in value)
        return value

    @staticmethod
    def _is_view(result: Any, args: tuple[Any, ...]) -> bool:
        return type(result) is not HPUTensor or any(
            type(value) is HPUTensor and value._block is result._block for value in args
        )


_copy = torch.ops.aten.copy_.default

current: Program | None = None
"""The capture in progress, if any. One at a time in a process."""


def _run_and_copy(
    func: OpOverload, results: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    fresh = func(*args, **kwargs)
    for old, new in zip(results, [fresh] if isinstance(fresh, Tensor) else fresh, strict=True):
        if isinstance(old, Tensor):
            old.copy_(new)


_out_overloads: dict[OpOverload, tuple[OpOverload, list[str]] | None] = {}


def _out_overload(func: OpOverload) -> tuple[OpOverload, list[str]] | None:
    """The overload of the same op that writes to given tensors, and what it calls them."""
    if func not in _out_overloads:
        _out_overloads[func] = _find_out_overload(func)
    return _out_overloads[func]


def _find_out_overload(func: OpOverload) -> tuple[OpOverload, list[str]] | None:
    wanted = [(a.name, str(a.type)) for a in func._schema.arguments]
    if any(not isinstance(r.type, torch.TensorType) for r in func._schema.returns):
        return None
    packet = func.overloadpacket
    for name in packet.overloads():
        candidate = getattr(packet, name)
        arguments = candidate._schema.arguments
        outs = [a.name for a in arguments if a.is_out]
        if len(outs) != len(func._schema.returns):
            continue
        if [(a.name, str(a.type)) for a in arguments if not a.is_out] == wanted:
            return candidate, outs
    return None
