"""What an `HPUTensor` answers from Python where C++ would answer as a CPU tensor.

Pickling writes plain CPU tensors, so that no checkpoint names our class and
``torch.load(weights_only=True)`` reads every one of them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gaudi.emulator import dispatch, events
from lightning_gaudi.emulator.dispatch import to_host
from lightning_gaudi.emulator.tensor import HPUTensor, block_of, unwrap


def tolist(self: HPUTensor) -> Any:
    """Copy to the host and read there: a host read, as on the card."""
    events.emit("host_read", "tolist")
    return to_host(self).tolist()


def numpy(self: HPUTensor, *, force: bool = False) -> Any:
    """As on any device: NumPy arrays live on the host.

    Raises:
        TypeError: Without ``force``.
    """
    if force:
        return to_host(self).numpy()
    raise TypeError(
        "can't convert hpu:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
        "host memory first."
    )


def _array(self: HPUTensor, *args: Any, **kwargs: Any) -> Any:
    return numpy(self)


def _repr(self: HPUTensor, *, tensor_contents: Any = None) -> str:
    events.emit("host_read", "repr")
    text = repr(to_host(self))
    suffix = ", device='hpu:0'"
    if self.grad_fn is not None:
        suffix += f", grad_fn=<{type(self.grad_fn).__name__}>"
    elif self.requires_grad:
        suffix += ", requires_grad=True"
    text = f"{text[:-1]}{suffix})"
    return f"Parameter containing:\n{text}" if isinstance(self, nn.Parameter) else text


def _format(self: HPUTensor, spec: str) -> str:
    return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)


def _reduce_ex(self: HPUTensor, protocol: Any) -> Any:
    """Pickle as the plain CPU tensor on the same storage, so that shared storage stays shared."""
    # `unwrap` keeps version and layout; a transfer would break ties between tensors of one file.
    events.emit("d2h", "pickle")
    plain = unwrap(self)
    if isinstance(self, nn.Parameter):
        hooks: OrderedDict[Any, Any] = OrderedDict()
        return torch._utils._rebuild_parameter, (plain, self.requires_grad, hooks)
    plain.requires_grad_(self.requires_grad and self.is_leaf)
    return plain.__reduce_ex__(protocol)


def _deepcopy(self: HPUTensor, memo: dict[int, Any]) -> Any:
    if id(self) in memo:
        return memo[id(self)]
    if not self.is_leaf:
        raise RuntimeError(
            "Only Tensors created explicitly by the user (graph leaves) support the deepcopy "
            "protocol at the moment. Detach the tensor first."
        )
    with torch.no_grad():
        copied = self.clone()
    result: Any = copied
    if isinstance(self, nn.Parameter):
        result = nn.Parameter(copied, self.requires_grad)
    else:
        result.requires_grad_(self.requires_grad)
    if self.grad is not None:
        result.grad = _deepcopy(self.grad, memo)  # type: ignore[arg-type]
    memo[id(self)] = result
    return result


_plain_data = Tensor.data


def _get_data(self: HPUTensor) -> Tensor:
    return _plain_data.__get__(self)  # type: ignore[attr-defined, no-any-return]


def _set_data(self: HPUTensor, value: Tensor) -> None:
    if type(value) is not HPUTensor:
        raise RuntimeError(
            "the emulated HPU cannot turn a tensor on hpu:0 into a CPU tensor by assigning to "
            '.data. Move the module with module.to("cpu") instead.'
        )
    _plain_data.__set__(self, value)  # type: ignore[attr-defined]
    # The storage is another one now, and so is its place in the pending graph.
    self._block, self._node = block_of(value), value._node


def _new(name: str) -> Any:
    plain_method = getattr(Tensor, name)

    def method(self: HPUTensor, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if device is not None and torch.device(device).type != "hpu":
            return plain_method(unwrap(self), *args, device=device, **kwargs)  # type: ignore[no-any-return]
        if name == "new_tensor":
            kwargs.setdefault("dtype", self.dtype)
            return torch.tensor(*args, device="hpu", **kwargs)
        return plain_method(self, *args, **kwargs)  # type: ignore[no-any-return]

    method.__name__ = name
    return method


def _like(name: str) -> Any:
    plain_function = getattr(torch, name)

    def function(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device = kwargs.get("device")
        if device is None:
            return plain_function(input, *args, **kwargs)  # type: ignore[no-any-return]
        if type(input) is HPUTensor:
            if torch.device(device).type == "hpu":
                kwargs.pop("device")
            else:
                input = unwrap(input)
        return plain_function(input, *args, **kwargs)  # type: ignore[no-any-return]

    function.__name__ = name
    function.__doc__ = plain_function.__doc__
    return function


def _pin_memory(self: HPUTensor, *args: Any) -> Tensor:
    raise RuntimeError("cannot pin 'hpu' tensors: only dense CPU tensors can be pinned")


def attach() -> None:
    """Give `HPUTensor` its methods, and the ``*_like`` functions their sense of the host."""
    dispatch.attach()
    methods: dict[str, Any] = {
        "tolist": tolist,
        "numpy": numpy,
        "pin_memory": _pin_memory,
        "data": property(_get_data, _set_data),
        "__array__": _array,
        "__repr__": _repr,
        "__format__": _format,
        "__reduce_ex__": _reduce_ex,
        "__deepcopy__": _deepcopy,
    }
    for name in ("new_tensor", "new_empty", "new_zeros", "new_ones", "new_full"):
        methods[name] = _new(name)
    for name, method in methods.items():
        setattr(HPUTensor, name, method)
    for name in ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"):
        setattr(torch, name, _like(name))
