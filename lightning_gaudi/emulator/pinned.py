"""Pinned host memory: a mark on a storage, so that every view of it is pinned too.

There is no device that could read host memory by itself, so pinning moves nothing. PyTorch asks
the accelerator for an allocator of such memory, which a backend in Python cannot provide; so the
factories that take ``pin_memory=True`` make ordinary memory first and mark it here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator.patching import replace
from lightning_gaudi.emulator.tensor import HPUTensor

_FACTORIES = (
    "arange",
    "empty",
    "empty_permuted",
    "empty_strided",
    "eye",
    "full",
    "linspace",
    "logspace",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "scalar_tensor",
    "tensor",
    "zeros",
)
_LIKE = (
    "empty_like",
    "full_like",
    "ones_like",
    "rand_like",
    "randint_like",
    "randn_like",
    "zeros_like",
)


def pin_memory(self: Tensor, device: Any = None) -> Tensor:
    """A pinned copy of a host tensor, or the tensor itself where it is pinned already.

    Raises:
        RuntimeError: The tensor is not on the host.
    """
    if type(self) is HPUTensor:
        raise RuntimeError("cannot pin 'hpu' tensors: only dense CPU tensors can be pinned")
    return self if is_pinned(self) else _mark(self.clone())


def is_pinned(self: Tensor, device: Any = None) -> bool:
    """Whether the memory behind a tensor is pinned."""
    if type(self) is HPUTensor or self.layout != torch.strided:
        return False
    try:
        storage = self.untyped_storage()
    except NotImplementedError:  # a tensor of a kind that has no storage
        return False
    return bool(getattr(storage, "_is_pinned", False))


def _mark(tensor: Tensor) -> Tensor:
    tensor.untyped_storage()._is_pinned = True  # type: ignore[attr-defined]
    return tensor


def _factory(plain_function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def function(*args: Any, **kwargs: Any) -> Tensor:
        if not kwargs or not kwargs.pop("pin_memory", False):
            return plain_function(*args, **kwargs)
        if kwargs.get("out") is not None:
            raise TypeError(f"{plain_function.__name__}(): pin_memory and out exclude each other")
        made = plain_function(*args, **kwargs)
        if made.device.type != "cpu":
            raise RuntimeError(
                f"Only dense CPU tensors can be pinned, but {plain_function.__name__} makes one on "
                f"{made.device}. Leave pin_memory out, or the device."
            )
        return _mark(made)

    return function


def attach() -> None:
    """Put these in place of PyTorch's."""
    for name in (*_FACTORIES, *_LIKE):
        replace(torch, name, _factory(getattr(torch, name)))
    replace(Tensor, "pin_memory", pin_memory)
    replace(Tensor, "is_pinned", is_pinned)
