"""Gradients of HPU tensors are HPU tensors.

Some backward formulas in C++ begin with a tensor of zeros "on the same device" and return it; to
C++ that is the CPU, so such a gradient comes out as a plain tensor (that of
``sgn`` or ``copysign``, say). It gets our type where user code meets it: in ``.grad`` and from
``torch.autograd.grad``.

And a gradient on the other device than its tensor is refused, where C++ would see one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gaudi.emulator.patching import replace
from lightning_gaudi.emulator.tensor import HPUTensor, unwrap, wrap

_plain_grad: Any = Tensor.grad
_plain_autograd_grad = torch.autograd.grad
_plain_backward = torch.autograd.backward
_is_transformed = torch._C._functorch.is_functorch_wrapped_tensor


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


def _set_grad(self: Tensor, value: Tensor | None) -> None:
    if isinstance(value, Tensor) and value.device != self.device:
        raise RuntimeError(
            "assigned grad has data located on a different device: the tensor is on "
            f"{self.device} and the gradient on {value.device}."
        )
    _plain_grad.__set__(self, value)


def _delete_grad(self: Tensor) -> None:
    _plain_grad.__delete__(self)


def _check_roots(outputs: Any, grad_outputs: Any) -> None:
    """Refuse a gradient to begin with that is on another device than its output.

    Raises:
        RuntimeError: There is one, and it has a dimension; a scalar is moved.
    """
    if grad_outputs is None:
        return
    outputs = outputs if isinstance(outputs, Sequence) else (outputs,)
    grads = grad_outputs if isinstance(grad_outputs, Sequence) else (grad_outputs,)
    for number, (output, grad) in enumerate(zip(outputs, grads, strict=False)):
        if not (isinstance(grad, Tensor) and isinstance(output, Tensor) and grad.dim() > 0):
            continue
        if _is_transformed(output) or _is_transformed(grad):
            continue  # what `torch.func` works on does not show its device
        if (type(output) is HPUTensor) is not (type(grad) is HPUTensor):
            raise RuntimeError(
                f"invalid gradient at index {number} - expected device {output.device} but got "
                f"{grad.device}"
            )


def _backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> None:
    _check_roots(tensors, grad_tensors)
    _plain_backward(tensors, grad_tensors, *args, **kwargs)


def _autograd_grad(
    outputs: Any, inputs: Any, grad_outputs: Any = None, *args: Any, **kwargs: Any
) -> Any:
    _check_roots(outputs, grad_outputs)
    grads = _plain_autograd_grad(outputs, inputs, grad_outputs, *args, **kwargs)
    if isinstance(grads, dict):
        return {name: _on_device_of(inputs[name], grad) for name, grad in grads.items()}
    sources = inputs if isinstance(inputs, Sequence) else (inputs,)
    return tuple(_on_device_of(s, grad) for s, grad in zip(sources, grads, strict=True))


def _on_device_of(source: Any, grad: Tensor | None) -> Tensor | None:
    return _on_device(grad) if type(source) is HPUTensor and grad is not None else grad


def attach() -> None:
    """Put these in place."""
    HPUTensor.grad = property(_get_grad, _set_grad, _delete_grad)  # type: ignore[assignment]
    # A parameter may be anywhere. Other plain tensors keep PyTorch's own, which is faster.
    nn.Parameter.grad = property(_plain_grad.__get__, _set_grad, _delete_grad)  # type: ignore[assignment]
    replace(torch.autograd, "grad", _autograd_grad)
    replace(torch.autograd, "backward", _backward)
