"""Gradients of HPU tensors are HPU tensors.

Some backward formulas in C++ begin with a tensor of zeros "on the same device" and return it; to
C++ that is the CPU, so such a gradient comes out as a plain tensor (that of
``sgn`` or ``copysign``, say). It gets our type where user code meets it: in ``.grad`` and from
``torch.autograd.grad``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator.patching import replace
from lightning_gaudi.emulator.tensor import HPUTensor, unwrap, wrap

_plain_grad: Any = Tensor.grad
_plain_autograd_grad = torch.autograd.grad


def _on_device(grad: Tensor) -> Tensor:
    if type(grad) is not Tensor:
        return grad
    if grad._is_zerotensor():
        # Zeros without memory, which cannot be given our type.
        grad = torch.zeros_like(grad)
    return grad.to("hpu") if grad.requires_grad else wrap(unwrap(grad))


def _get_grad(self: HPUTensor) -> Tensor | None:
    grad: Tensor | None = _plain_grad.__get__(self)
    if type(grad) is Tensor:
        grad = _on_device(grad)
        _plain_grad.__set__(self, grad)
    return grad


def _set_grad(self: HPUTensor, value: Tensor | None) -> None:
    if value is not None and type(value) is not HPUTensor:
        raise RuntimeError(
            "assigned grad has data located on a different device: the tensor is on hpu:0 and the "
            "gradient on the CPU."
        )
    _plain_grad.__set__(self, value)


def _delete_grad(self: HPUTensor) -> None:
    _plain_grad.__delete__(self)


def _autograd_grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    grads = _plain_autograd_grad(outputs, inputs, *args, **kwargs)
    sources = inputs if isinstance(inputs, Sequence) else (inputs,)
    return tuple(
        _on_device(grad) if type(source) is HPUTensor and grad is not None else grad
        for source, grad in zip(sources, grads, strict=True)
    )


def attach() -> None:
    """Put these in place."""
    HPUTensor.grad = property(_get_grad, _set_grad, _delete_grad)  # type: ignore[assignment]
    replace(torch.autograd, "grad", _autograd_grad)
