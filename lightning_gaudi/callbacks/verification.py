"""Runs a forward op by op beside its replay, and compares the two."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gaudi.errors import ReplayMismatchError
from lightning_gaudi.graphs.structure import UnsupportedValueError, flatten, rebuild
from lightning_gaudi.runtime import capture as hpu_capture
from lightning_gaudi.runtime import random as device_random

# Of torch.testing.assert_close: a fused graph rounds less often than ops one by one.
_TOLERANCES = {torch.float16: (1e-3, 1e-5), torch.bfloat16: (1.6e-2, 1e-5)}
_DEFAULT_TOLERANCE = (1.3e-6, 1e-5)


class VerifiedForward:
    """A replayed callable, each call of which is compared with running it op by op.

    Where the forward writes to its arguments or its module's buffers, running it once more would
    write twice, and where it draws random numbers two runs differ: such calls are not compared.
    For debugging: it copies arguments and buffers, runs everything twice and reads the results.

    Args:
        replayed: What is verified.
        fn: The same, op by op.
        module: The module whose weights it reads.
        name: What messages call it.

    Attributes:
        num_compared: How many calls were compared.
    """

    def __init__(
        self,
        replayed: Callable[..., Any],
        fn: Callable[..., Any],
        module: nn.Module,
        name: str,
    ) -> None:
        update_wrapper(self, fn, updated=())
        self.name = name
        self.num_compared = 0
        self._replayed = replayed
        self._fn = fn
        self._module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the callable.

        Raises:
            ReplayMismatchError: The replay's result is another one.
            Exception: Whatever the callable raises.
        """
        if hpu_capture.is_capturing():
            return self._fn(*args, **kwargs)
        given: list[Tensor] = []
        try:
            flatten((args, kwargs), given)
        except UnsupportedValueError:
            return self._replayed(*args, **kwargs)  # which runs op by op
        watched = [*given, *self._module.buffers()]
        before = [tensor.detach().clone() for tensor in watched]
        copies = iter(before[: len(given)])
        state = device_random.get_state()
        result = self._replayed(*args, **kwargs)
        if not all(map(_is_same, watched, before)):
            return result  # it writes in place
        again_args, again_kwargs = rebuild((args, kwargs), copies)
        with _random_state(state), torch.no_grad():
            expected = self._fn(*again_args, **again_kwargs)
            draws = not torch.equal(_bytes(device_random.get_state()), _bytes(state))
        if not draws:
            self._compare(result, expected, given)
            self.num_compared += 1
        return result

    def _compare(self, result: Any, expected: Any, given: list[Tensor]) -> None:
        found: list[Tensor] = []
        wanted: list[Tensor] = []
        try:
            structures = flatten(result, found), flatten(expected, wanted)
        except UnsupportedValueError:
            return  # not a result of a graph
        shapes = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in given)
        where = f"{self.name}, called with ({shapes})"
        if structures[0] != structures[1]:
            raise ReplayMismatchError(
                f"{where}: the replay returns another structure than the forward op by op: "
                f"{result!r} in place of {expected!r}. {_REMEDY}"
            )
        for place, (tensor, other) in enumerate(zip(found, wanted, strict=True)):
            problem = _difference(tensor.detach(), other.detach())
            if problem is not None:
                raise ReplayMismatchError(
                    f"{where}: output {place} of the replay differs from the forward op by op, "
                    f"{problem}. {_REMEDY}"
                )


_REMEDY = (
    "Something besides the arguments and the weights decides what the forward computes (an "
    "attribute, a global, a counter): pass it as an argument, or leave this target out."
)


def _difference(found: Tensor, expected: Tensor) -> str | None:
    """In words, how two tensors differ; None if they are equal but for rounding."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return (
            f"which is {tuple(found.shape)} {found.dtype} in place of {tuple(expected.shape)} "
            f"{expected.dtype}"
        )
    found, expected = found.cpu(), expected.cpu()
    if not found.is_floating_point() and not found.is_complex():
        wrong = int((found != expected).sum())
        return f"in {wrong} of {found.numel()} elements" if wrong else None
    rtol, atol = _TOLERANCES.get(found.dtype, _DEFAULT_TOLERANCE)
    if torch.allclose(found, expected, rtol=rtol, atol=atol, equal_nan=True):
        return None
    return f"by up to {float((found - expected).abs().nan_to_num(torch.inf).max()):.3g}"


def _is_same(tensor: Tensor, before: Tensor) -> bool:
    return torch.equal(
        tensor.detach().cpu().nan_to_num() if tensor.is_floating_point() else tensor.cpu(),
        before.cpu().nan_to_num() if before.is_floating_point() else before.cpu(),
    )


def _bytes(state: Tensor | None) -> Tensor:
    return torch.empty(0) if state is None else state


@contextmanager
def _random_state(state: Tensor | None) -> Iterator[None]:
    """Random numbers as of an earlier state, and afterwards go on where they were."""
    after, host = device_random.get_state(), random.getstate()
    device_random.set_state(state)
    try:
        yield
    finally:
        device_random.set_state(after)
        random.setstate(host)
