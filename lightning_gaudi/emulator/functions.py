"""Functions of ``torch`` that make a tensor from another one, where either may be on the HPU.

C++ takes an `HPUTensor` for a CPU tensor, so to it ``zeros_like(x, device="cpu")`` and
``as_tensor(x, device="cpu")`` ask for the device that `x` is on. These wrappers know better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._device import _device_constructors

from lightning_gaudi.emulator import accounting, events
from lightning_gaudi.emulator.patching import replace
from lightning_gaudi.emulator.tensor import HPUTensor, unwrap, wrap
from lightning_gaudi.emulator.transfer import check_index

_LIKE = (
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
    "rand_like",
    "randn_like",
    "randint_like",
)
_FROM_DATA = ("as_tensor", "asarray", "tensor")
_PYTHON_DATA = frozenset({list, tuple, int, float, bool, complex})
# These take ``out=`` and ``device=``, and C++ compares the two.
_INTO = (
    "arange",
    "empty",
    "eye",
    "full",
    "linspace",
    "logspace",
    "normal",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "range",
    "zeros",
)


def _is_hpu(device: Any) -> bool:
    target = torch.device(device)
    if target.type != "hpu":
        return False
    check_index(target)
    return True


def _like(plain_function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def function(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if type(input) is HPUTensor and kwargs.get("device") is not None:
            if _is_hpu(kwargs["device"]):
                kwargs.pop("device")
            else:
                input = unwrap(input)
        return plain_function(input, *args, **kwargs)

    return function


def _holds_hpu_tensor(data: Any) -> bool:
    if type(data) not in (list, tuple):
        return False
    kinds = set(map(type, data))
    if list in kinds or tuple in kinds:
        return any(map(_holds_hpu_tensor, data))
    return HPUTensor in kinds


def _from_data(plain_function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def function(*args: Any, **kwargs: Any) -> Tensor:
        device = kwargs.get("device")
        if args and type(args[0]) in _PYTHON_DATA and not torch.compiler.is_compiling():
            # C++ reads the elements and copies the result with dispatch turned off.
            if _holds_hpu_tensor(args[0]):
                accounting.before_host_read(plain_function.__name__)
            result = plain_function(*args, **kwargs)
            if type(result) is HPUTensor:
                events.emit("h2d", plain_function.__name__)
            return result
        if device is not None and args and type(args[0]) is HPUTensor:
            if _is_hpu(device):
                kwargs.pop("device")
            else:
                args = (args[0].cpu(), *args[1:])
        return plain_function(*args, **kwargs)

    return function


def _into(plain_function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def function(*args: Any, **kwargs: Any) -> Tensor:
        if type(kwargs.get("out")) is HPUTensor and kwargs.get("device") is not None:
            if not _is_hpu(kwargs["device"]):
                raise RuntimeError(
                    f"device {kwargs['device']} does not match the device of the out parameter "
                    "(hpu:0)."
                )
            kwargs.pop("device")
        return plain_function(*args, **kwargs)

    return function


def _matrix_rank(plain_function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def function(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # C++ makes the result "on the same device", and so without our type; and it forgets to
        # write to ``out`` where it has to do with a subclass.
        out = kwargs.pop("out") if type(kwargs.get("out")) is HPUTensor else None
        result = plain_function(input, *args, **kwargs)
        if type(input) is HPUTensor and type(result) is Tensor:
            result = wrap(result)
        return result if out is None else out.resize_(result.shape).copy_(result)

    return function


def attach() -> None:
    """Put the wrappers in place of PyTorch's functions."""
    # ``with torch.device(...)`` knows constructors by identity; it must learn PyTorch's own first.
    _device_constructors()
    for name in _LIKE:
        replace(torch, name, _like(getattr(torch, name)))
    for name in _FROM_DATA:
        replace(torch, name, _from_data(getattr(torch, name)))
    for name in _INTO:
        replace(torch, name, _into(getattr(torch, name)))
    replace(torch.linalg, "matrix_rank", _matrix_rank(torch.linalg.matrix_rank))
