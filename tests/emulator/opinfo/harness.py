"""Runs one entry of PyTorch's table of ops on the CPU and on the emulated HPU, and compares.

An entry is run on all its samples: the function, the method, the in-place variant and the variant
with ``out=``, and the gradients with respect to every input.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from emulator.opinfo import differences
from emulator.opinfo.comparison import Mismatch, compare
from emulator.opinfo.inputs import copies, tensors_in
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import BinaryUfuncInfo

DTYPES = (torch.float32, torch.bfloat16)
# For an entry that supports neither on the CPU, the first of these that it does.
OTHER_DTYPES = (
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.float16,
    torch.float64,
    torch.int32,
    torch.uint8,
    torch.int8,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
SEED = 7
DEVICES = ("cpu", "hpu")


@dataclass(frozen=True)
class Pair:
    """An entry of the table and a dtype."""

    op: Any
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """The entry's name with its variant."""
        variant = self.op.variant_test_name
        return f"{self.op.name}.{variant}" if variant else str(self.op.name)

    @property
    def id(self) -> str:
        """What it is called in tests and in the list of differences."""
        return f"{self.name}-{str(self.dtype).removeprefix('torch.')}"


def pairs() -> list[Pair]:
    """All pairs of an entry and a dtype that the CPU supports."""
    found = []
    for op in op_db:
        dtypes = [dtype for dtype in DTYPES if op.supports_dtype(dtype, "cpu")]
        if not dtypes:
            dtypes = [dtype for dtype in OTHER_DTYPES if op.supports_dtype(dtype, "cpu")][:1]
        found += [Pair(op, dtype) for dtype in dtypes]
    return found


def entries_without_cpu() -> list[str]:
    """Entries that the CPU supports in no dtype, so that there is nothing to compare with."""
    tested = {pair.name for pair in pairs()}
    return sorted({Pair(op, torch.float32).name for op in op_db} - tested)


@dataclass
class Counts:
    """What a check has seen.

    Attributes:
        num_samples: Samples of the entry.
        num_calls: Calls that were made on both devices.
        num_refused: Those of them that both devices refused, with the same type of error.
    """

    num_samples: int = 0
    num_calls: int = 0
    num_refused: int = 0


@dataclass
class Attempt:
    """What came of a call: a result, or an error."""

    result: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Call:
    """A sample, and the function to call with it."""

    function: Callable[..., Any]
    sample: Any

    def __call__(self, args: list[Any], kwargs: dict[str, Any], device: str) -> Any:
        """Call it. What is given no tensor and no device makes one on the default device."""
        if tensors_in([args, kwargs]) or "device" in kwargs:
            return self.function(*args, **kwargs)
        with torch.device(device):
            return self.function(*args, **kwargs)

    def inputs(self, device: str, *, requires_grad: bool) -> tuple[list[Any], dict[str, Any]]:
        """Fresh copies of the sample's arguments."""
        args = [self.sample.input, *self.sample.args]
        return (
            copies(args, device, requires_grad=requires_grad),
            copies(dict(self.sample.kwargs), device, requires_grad=requires_grad),
        )


def check_pair(
    pair: Pair,
    kind: str = "sample_inputs",
    *,
    gradients: bool = True,
    max_samples: int | None = None,
    after_call: Callable[[], Any] | None = None,
) -> Counts:
    """Check one entry in one dtype.

    Args:
        pair: The entry and the dtype.
        kind: Which samples: ``"sample_inputs"`` or ``"reference_inputs"``.
        gradients: Whether to compare gradients, where the entry has them.
        max_samples: Stop after so many; None takes all.
        after_call: Called after each call on the HPU.

    Raises:
        Mismatch: CPU and HPU differ.
    """
    op = pair.op
    gradients = (
        gradients and op.supports_autograd and pair.dtype in op.supported_backward_dtypes("cpu")
    )
    checker = Checker(pair, after_call)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(SEED)
        samples = getattr(op, kind)("cpu", pair.dtype, requires_grad=gradients)
        for number, sample in enumerate(list(islice(samples, max_samples))):
            if isinstance(op, BinaryUfuncInfo) and not tensors_in([sample.input, sample.args]):
                continue  # two Python numbers are on no device
            checker.counts.num_samples += 1
            try:
                checker.check_sample(sample, gradients)
            except Mismatch as error:
                raise Mismatch(f"sample {number}, {error}") from error.__cause__
    return checker.counts


def _on_a_copy(in_place: Callable[..., Any]) -> Callable[..., Any]:
    """An in-place function that leaves its input alone, which may be a leaf."""

    def function(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        copied = [t.clone() for t in tensor] if isinstance(tensor, list) else tensor.clone()
        result = in_place(copied, *args, **kwargs)
        return copied if result is None else result

    return function


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=tensor.dtype)


def _targets(value: Any, make: Callable[[Tensor], Tensor], device: str) -> Any:
    if isinstance(value, Tensor):
        return make(value).to(device)
    return tuple(_targets(item, make, device) for item in value)


class Checker:
    """Makes every call on the CPU first and then on the HPU, and compares what comes of it."""

    def __init__(self, pair: Pair, after_call: Callable[[], Any] | None) -> None:
        self.pair = pair
        self.counts = Counts()
        self._after_call = after_call

    def check_sample(self, sample: Any, gradients: bool) -> None:
        """Check all variants of the op on one sample."""
        op = self.pair.op
        function = Call(op.get_op(), sample)
        self._check_call(function, "function")
        if gradients:
            self._check_gradients(function, "gradient")
        if op.method_variant is not None:
            self._check_call(Call(op.method_variant, sample), "method")
        if op.inplace_variant is not None and not sample.broadcasts_input:
            self._check_call(Call(op.inplace_variant, sample), "in place")
            if gradients and op.supports_inplace_autograd:
                call = Call(_on_a_copy(op.inplace_variant), sample)
                self._check_gradients(call, "gradient in place")
        if op.supports_out:
            self._check_out(function)

    def _run(self, function: Callable[[], Any], device: str) -> Attempt:
        """Call a function with the random numbers of a fixed seed."""
        torch.manual_seed(SEED)
        state = torch.get_rng_state()
        try:
            attempt = Attempt(result=function())
        except Exception as error:
            attempt = Attempt(error=error)
        if device == "hpu":
            if not torch.equal(torch.get_rng_state(), state):
                raise Mismatch("the call on the HPU drew from the CPU's generator")
            if self._after_call is not None:
                self._after_call()
        return attempt

    def _inputs(self, call: Call, device: str, place: str, *, requires_grad: bool) -> Any:
        try:
            return call.inputs(device, requires_grad=requires_grad)
        except Exception as error:
            raise Mismatch(f"{place}: no such inputs on {device}: {error!r}") from error

    def _both_refuse(self, expected: Attempt, found: Attempt, place: str) -> bool:
        """Whether both devices refused a call; True means that there is nothing to compare.

        Raises:
            Mismatch: Only one refused, or they did for different reasons.
        """
        self.counts.num_calls += 1
        if type(expected.error) is not type(found.error):
            raise Mismatch(
                f"{place}: the CPU says {expected.error!r:.200} and the HPU {found.error!r:.200}"
            ) from (found.error or expected.error)
        self.counts.num_refused += expected.error is not None
        return expected.error is not None

    def _compare(self, expected: Any, found: Any, place: str) -> None:
        compare(
            expected,
            found,
            place,
            tolerance=differences.tolerance(self.pair.name, self.pair.dtype),
            has_values=self.pair.name not in differences.UNINITIALIZED,
        )

    def _check_call(self, call: Call, place: str) -> None:
        """Compare what a call returns and what it leaves in its inputs, without gradients."""
        attempts, inputs = [], []
        for device in DEVICES:
            args, kwargs = self._inputs(call, device, place, requires_grad=False)
            inputs.append(tensors_in([args, kwargs]))
            attempts.append(self._run(partial(call, args, kwargs, device), device))
        expected, found = attempts
        if self._both_refuse(expected, found, place):
            return
        self._compare(expected.result, found.result, place)
        self._compare(inputs[0], inputs[1], f"{place}, inputs afterwards")
        self._compare_identity(attempts, inputs, place)

    def _compare_identity(self, attempts: list[Attempt], given: list[Any], place: str) -> None:
        """A result that is one of the given tensors on the CPU is that one on the HPU too."""
        is_given = [
            [a is b for a in tensors_in(attempt.result) for b in tensors_in(tensors)]
            for attempt, tensors in zip(attempts, given, strict=True)
        ]
        if is_given[0] != is_given[1]:
            raise Mismatch(f"{place}: the result is another object than on the CPU")

    def _check_gradients(self, call: Call, place: str) -> None:
        """Compare the gradients of everything that a call returns, for everything it was given."""
        attempts = []
        for device in DEVICES:
            args, kwargs = self._inputs(call, device, place, requires_grad=True)
            attempts.append(self._run(partial(_gradients, call, args, kwargs, device), device))
        expected, found = attempts
        if self._both_refuse(expected, found, place):
            return
        self._compare(expected.result[0], found.result[0], f"{place}, result")
        self._compare(expected.result[1], found.result[1], place)

    def _check_out(self, call: Call) -> None:
        """Compare the variant that writes to given tensors: of the right shape, and empty ones."""
        args, kwargs = self._inputs(call, "cpu", "out=", requires_grad=False)
        result = self._run(partial(call, args, kwargs, "cpu"), "cpu").result
        if not tensors_in(result):
            return
        for place, make in (("out=", torch.zeros_like), ("out= of size 0", _empty_like)):
            attempts, targets = [], []
            for device in DEVICES:
                args, kwargs = self._inputs(call, device, place, requires_grad=False)
                targets.append(_targets(result, make, device))
                function = partial(call.function, *args, **kwargs, out=targets[-1])
                attempts.append(self._run(function, device))
            expected, found = attempts
            if self._both_refuse(expected, found, place):
                continue
            self._compare(expected.result, found.result, place)
            self._compare(targets[0], targets[1], f"{place}, the given tensors")
            self._compare_identity(attempts, targets, place)


def _gradients(call: Call, args: Any, kwargs: Any, device: str) -> tuple[Any, Any]:
    outputs = call(args, kwargs, device)
    processed = call.sample.output_process_fn_grad(outputs)
    wanted = [t for t in tensors_in(processed) if t.requires_grad]
    inputs = [t for t in tensors_in([args, kwargs]) if t.requires_grad]
    if not wanted or not inputs:
        return processed, ()
    numbers = torch.Generator().manual_seed(SEED)
    seeds = [torch.randn(t.shape, dtype=t.dtype, generator=numbers).to(device) for t in wanted]
    grads = torch.autograd.grad(wanted, inputs, seeds, allow_unused=True)
    return processed, grads
