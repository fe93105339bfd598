"""How tensors come to be on the emulated HPU: every factory ends in one of these two kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator import mode
from lightning_gaudi.emulator.tensor import wrap
from lightning_gaudi.emulator.transfer import check_index

_registrations: list[Any] = []


def _empty(
    size: Any,
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    _check(device)
    plain = torch.empty(
        size, dtype=dtype, device="cpu", memory_format=memory_format or torch.contiguous_format
    )
    return wrap(plain)


def _empty_strided(
    size: Any,
    stride: Any,
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> Tensor:
    _check(device)
    return wrap(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _check(device: torch.device | None) -> None:
    mode.is_lazy()  # the first tensor on the device fixes the mode
    if device is not None:
        check_index(device)


def _triangle_indices(name: str) -> Any:
    """``tril_indices`` and ``triu_indices``, which PyTorch does not build from other factories."""
    plain_function = getattr(torch, name)

    def kernel(*args: Any, device: Any = None, pin_memory: Any = None, **kwargs: Any) -> Tensor:
        _check(device)
        return wrap(plain_function(*args, device="cpu", **kwargs))

    return kernel


_plain_new_storage: Any = torch.UntypedStorage.__new__


def _new_storage(cls: Any, *args: Any, device: Any = None, **options: Any) -> Any:
    """``torch.UntypedStorage(..., device="hpu")``: C++ has no allocator for it, and would crash."""
    if device is not None and torch.device(device).type == "hpu":
        _check(torch.device(device))
        device = "cpu"
    return _plain_new_storage(cls, *args, device=device, **options)


def register() -> None:
    """Register the kernels for our device, and for a ``torch.device`` from before its naming."""
    torch.UntypedStorage.__new__ = _new_storage  # type: ignore[method-assign]
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for key in ("PrivateUse1", "HPU"):
        library.impl("empty.memory_format", _empty, key)
        library.impl("empty_strided", _empty_strided, key)
        for name in ("tril_indices", "triu_indices"):
            library.impl(name, _triangle_indices(name), key)
    _registrations.append(library)  # kernels live as long as their library object
