"""Strict mode: what a card would do differently shows (``LIGHTNING_GAUDI_EMULATOR_STRICT=1``).

- int64 and float64 narrow: values keep their dtype and lose what 32 bits cannot hold, as on a card,
  which computes them so (HABANA.md, "Lazy mode"; ``PT_ENABLE_INT64_SUPPORT=1`` keeps int64).
- An op without a kernel raises instead of running on the host.
- Memory that a card would free after a capture is filled with values that show (see `poison`).

The variables are read once. Narrowing happens where an op is called, so replays narrow as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_no_dispatch = torch._C._DisableTorchDispatch
_data: Any = Tensor.data

_VARIABLE = "LIGHTNING_GAUDI_EMULATOR_STRICT"


@lru_cache(maxsize=1)
def is_strict() -> bool:
    """Whether strict mode is on.

    Raises:
        ValueError: The variable is neither 0 nor 1.
    """
    value = os.environ.get(_VARIABLE, "0")
    if value not in ("", "0", "1"):
        raise ValueError(f"{_VARIABLE} must be 1 (strict) or 0, but it is {value!r}.")
    return value == "1"


@lru_cache(maxsize=1)
def _narrow_dtypes() -> dict[torch.dtype, torch.dtype]:
    narrow = {torch.float64: torch.float32, torch.complex128: torch.complex64}
    if os.environ.get("PT_ENABLE_INT64_SUPPORT", "0") not in ("1", "true"):
        narrow[torch.int64] = torch.int32
    return narrow


def narrow(tensor: Tensor) -> None:
    """Cut the values of a tensor in place to what 32 bits hold; integers wrap around."""
    dtype = _narrow_dtypes().get(tensor.dtype)
    if dtype is None:
        return
    with _no_dispatch(), torch.no_grad():
        # `data` has a version counter of its own: autograd must not take this for a write.
        plain = _data.__get__(tensor)
        for dim, stride in enumerate(plain.stride()):
            if stride == 0:  # expanded: one number in memory, which `copy_` refuses to write twice
                plain = plain.narrow(dim, 0, min(1, plain.shape[dim]))
        plain.copy_(plain.to(dtype))


def narrowing(call: Callable[..., Any], writes: tuple[int | str, ...]) -> Callable[..., Any]:
    """Make an op narrow its results and what it writes to.

    Args:
        call: The op.
        writes: Positions and names of the arguments that it writes to.
    """

    def narrowing_call(*args: Any, **kwargs: Any) -> Any:
        out = call(*args, **kwargs)
        written = [kwargs.get(w) if isinstance(w, str) else args[w] for w in writes]
        for tensor in _tensors([out, *written]):
            narrow(tensor)
        return out

    return narrowing_call


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
