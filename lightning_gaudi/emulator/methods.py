"""What an `HPUTensor` answers from Python where C++ would answer as a CPU tensor.

Pickling writes plain CPU tensors, so that no checkpoint names our class and
``torch.load(weights_only=True)`` reads every one of them.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gaudi.emulator import accounting, dispatch, events
from lightning_gaudi.emulator.dispatch import to_host
from lightning_gaudi.emulator.patching import replace
from lightning_gaudi.emulator.swapping import exchange
from lightning_gaudi.emulator.tensor import OWN_ATTRIBUTES, HPUTensor, block_of, unwrap, wrap
from lightning_gaudi.emulator.transfer import check_index


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
    if accounting.is_pending(self):
        accounting.flush("d2h")
    events.emit("d2h", "pickle")
    plain = unwrap(self)
    attributes = _attributes(self)
    if isinstance(self, nn.Parameter):
        arguments: tuple[Any, ...] = (plain, self.requires_grad, OrderedDict())
        if not attributes:
            return torch._utils._rebuild_parameter, arguments
        return torch._utils._rebuild_parameter_with_state, (*arguments, attributes)
    plain.requires_grad_(self.requires_grad and self.is_leaf)
    vars(plain).update(attributes)
    return plain.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


def _attributes(self: HPUTensor) -> dict[str, Any]:
    """What the user has set on a tensor, which its copies and its pickles keep."""
    return {name: value for name, value in vars(self).items() if name not in OWN_ATTRIBUTES}


def _copy(self: HPUTensor) -> Any:
    """``copy.copy``, which otherwise goes by way of a pickle: the same memory, no gradient."""
    same: Any = _on_memory_of(self)
    result = nn.Parameter(same) if isinstance(self, nn.Parameter) else same
    result.requires_grad_(self.requires_grad)
    vars(result).update(_attributes(self))
    return result


def _on_memory_of(tensor: HPUTensor) -> HPUTensor:
    """A tensor of its own that is no view to autograd, with the memory and place of another."""
    same = wrap(unwrap(tensor), block_of(tensor))
    same._node = tensor._node
    return same


def _clone(self: HPUTensor, memo: dict[Any, Any]) -> HPUTensor:
    """A copy of all of a tensor's memory, made once for the tensors that share it."""
    if self.is_conj() or self.is_neg():
        return self.clone()  # type: ignore[return-value]
    storage = self.untyped_storage()
    clones: dict[Any, HPUTensor] = memo.setdefault("hpu", {})
    key = storage._cdata, self.dtype
    if key not in clones:
        num_elements = storage.nbytes() // self.itemsize
        clones[key] = self.as_strided((num_elements,), (1,), 0).clone()  # type: ignore[assignment]
    same: Any = clones[key].as_strided(self.shape, self.stride(), self.storage_offset())
    return _on_memory_of(same)


def _deepcopy(self: HPUTensor, memo: dict[Any, Any]) -> Any:
    if id(self) in memo:
        return memo[id(self)]
    if not self.is_leaf:
        raise RuntimeError(
            "Only Tensors created explicitly by the user (graph leaves) support the deepcopy "
            "protocol at the moment. Detach the tensor first."
        )
    with torch.no_grad():
        is_parameter = isinstance(self, nn.Parameter)
        copied: Any = self.clone() if is_parameter else _clone(self, memo)
    result = nn.Parameter(copied, self.requires_grad) if is_parameter else copied
    memo[id(self)] = result
    if not is_parameter:  # PyTorch copies no gradient and no attributes of parameters
        result.requires_grad_(self.requires_grad)
        if self.grad is not None:
            result.grad = copy.deepcopy(self.grad, memo)
        for name, value in _attributes(self).items():
            setattr(result, name, copy.deepcopy(value, memo))
    return result


_plain_data: Any = Tensor.data


def _get_data(self: HPUTensor) -> Tensor:
    data: Tensor = _plain_data.__get__(self)
    return data


def _set_data(self: Tensor, value: Tensor) -> None:
    """``tensor.data = value``, which may bring the tensor to another device."""
    if type(self) is not HPUTensor and type(value) is not HPUTensor:
        _plain_data.__set__(self, value)
    elif type(self) is type(value):
        _plain_data.__set__(self, value)
        # The storage is another one now, and so is its place in the pending graph.
        self._block, self._node = block_of(value), value._node  # type: ignore[attr-defined, arg-type]
    else:
        moved = value.detach()
        if isinstance(self, nn.Parameter):
            moved = nn.Parameter(moved, self.requires_grad)
        exchange(self, moved)


_plain_setitem: Any = Tensor.__setitem__
_NUMBERS = frozenset({int, float, bool, complex})


def _setitem(self: HPUTensor, index: Any, value: Any) -> None:
    """``tensor[index] = value``: C++ makes a tensor of a number, on the device but for the CPU."""
    if type(value) in _NUMBERS:
        value = torch.scalar_tensor(value, dtype=self.dtype, device=self.device)
    _plain_setitem(self, index, value)


_plain_type: Any = Tensor.type


def _type(self: HPUTensor, dtype: Any = None, non_blocking: bool = False) -> Any:
    """The legacy type name, or the tensor as another type, which may name the host."""
    if dtype is None:
        return _plain_type(self).replace("torch.", "torch.hpu.", 1)
    if isinstance(dtype, torch.dtype):
        return self.to(dtype=dtype, non_blocking=non_blocking)
    if isinstance(dtype, str) and dtype.startswith("torch.hpu."):
        return _plain_type(self, dtype.replace("torch.hpu.", "torch.", 1))
    return _plain_type(self.cpu(), dtype)


def _dlpack(self: HPUTensor, **options: Any) -> Any:
    raise RuntimeError("Cannot pack tensors on hpu:0")


def _to_dlpack(plain_function: Callable[..., Any]) -> Callable[..., Any]:
    def to_dlpack(tensor: Tensor) -> Any:
        return _dlpack(tensor) if type(tensor) is HPUTensor else plain_function(tensor)

    return to_dlpack


def _legacy_new(self: HPUTensor, *args: Any, **kwargs: Any) -> Tensor:
    return Tensor.new(unwrap(self), *args, **kwargs).to("hpu")


def _new(name: str) -> Any:
    plain_method: Callable[..., Tensor] = getattr(Tensor, name)

    def method(self: HPUTensor, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        target = self.device if device is None else torch.device(device)
        if target.type != "hpu":
            return plain_method(unwrap(self), *args, device=target, **kwargs)
        check_index(target)
        if name == "new_tensor":
            options: dict[str, Any] = {"dtype": self.dtype, **kwargs, "device": target}
            return torch.tensor(*args, **options)
        return plain_method(self, *args, **kwargs)

    method.__name__ = name
    return method


def attach() -> None:
    """Give `HPUTensor` its methods."""
    dispatch.attach()
    methods: dict[str, Any] = {
        "new": _legacy_new,
        "tolist": tolist,
        "numpy": numpy,
        "__setitem__": _setitem,
        "data": property(_get_data, _set_data),
        "type": _type,
        "__dlpack__": _dlpack,
        "__array__": _array,
        "__repr__": _repr,
        "__format__": _format,
        "__reduce_ex__": _reduce_ex,
        "__copy__": _copy,
        "__deepcopy__": _deepcopy,
    }
    for name in ("new_tensor", "new_empty", "new_zeros", "new_ones", "new_full"):
        methods[name] = _new(name)
    for name, method in methods.items():
        setattr(HPUTensor, name, method)
    dlpack: Any = torch.utils.dlpack
    replace(dlpack, "to_dlpack", _to_dlpack(dlpack.to_dlpack))
    # A plain tensor's `.data` stays PyTorch's own: only parameters are moved that way.
    nn.Parameter.data = property(lambda self: _plain_data.__get__(self), _set_data)  # type: ignore[assignment]
