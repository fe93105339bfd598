"""`DTensor` on the emulated HPU, and storages that are freed and allocated again.

A DTensor is a tensor of its own around a local one. C++ gives it the local tensor's device, which
is the CPU's here, so Python answers for it as it does for an `HPUTensor`: where its local tensor
lies, and with a move of that tensor.

FSDP frees what it has gathered by resizing the storage to nothing. A storage does not know its
`Block`, so whoever asks a tensor on the HPU for its storage is given one that does.
"""

from __future__ import annotations

import functools
import importlib
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator import transfer
from lightning_gaudi.emulator.tensor import HPUTensor

_OPTIMIZER = "torch.optim.optimizer"
_plain_device: Any = Tensor.device
_plain_storage = Tensor.untyped_storage
_plain_resize: Any = torch.UntypedStorage.resize_


def attach() -> None:
    """Keep the books of storages that are resized. `attach_to_dtensor` does the rest."""
    HPUTensor.untyped_storage = _untyped_storage  # type: ignore[assignment]
    torch.UntypedStorage.resize_ = _resize  # type: ignore[method-assign]


def attach_to_dtensor() -> None:
    """Give `DTensor` its device. Not at the start, since importing it takes a second."""
    from torch.distributed.tensor import DTensor

    # PyTorch counts a backend from outside its tree, and DTensors, among those that it runs
    # optimizers and clipping for by foreach kernels. Habana's device is inside it and not counted.
    name = "_get_foreach_kernels_supported_devices"
    for module in map(importlib.import_module, ("torch.utils._foreach_utils", _OPTIMIZER)):
        setattr(module, name, _without_hpu(getattr(module, name)))
    dtensor: Any = DTensor
    dtensor.device = property(_device)
    dtensor.is_hpu = property(lambda self: type(self._local_tensor) is HPUTensor)
    dtensor.is_cpu = property(_is_cpu)
    dtensor.to = _to
    dtensor.cpu = lambda self, **options: _to(self, torch.device("cpu"), **options)


def _untyped_storage(self: HPUTensor) -> torch.UntypedStorage:
    storage: Any = _plain_storage(self)
    block = getattr(self, "_block", None)  # none yet where it is this storage that one is made for
    if block is not None:
        # Weak: what was asked for its storage once must not stay in the books for that.
        storage._block = weakref.ref(block)
    return storage  # type: ignore[no-any-return]


def _resize(self: Any, size: int) -> torch.UntypedStorage:
    storage: torch.UntypedStorage = _plain_resize(self, size)
    reference = getattr(self, "_block", None)
    block = None if reference is None else reference()
    if block is not None:
        block.resize(storage.nbytes())
    return storage


def _without_hpu(plain_function: Callable[[], list[str]]) -> Callable[[], list[str]]:
    @functools.wraps(plain_function)
    def function() -> list[str]:
        return [device for device in plain_function() if device != "hpu"]

    return function


def _device(self: Any) -> torch.device:
    local = self._local_tensor
    return local.device if type(local) is HPUTensor else _plain_device.__get__(self)


def _is_cpu(self: Any) -> bool:
    return bool(_device(self).type == "cpu")


def _to(self: Any, *args: Any, **kwargs: Any) -> Any:
    """``DTensor.to``: only its local tensor moves, and autograd does not see it."""
    device, options = transfer.parse(args, kwargs)
    if device is None or device.type == _device(self).type:
        if device is not None and device.type == "hpu":
            transfer.check_index(device)
        return transfer.to(self, **options) if options else self
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    # Not by `from_local`, which moves the local tensor to the mesh's device.
    local = self.to_local().detach().to(device, **options)
    meta = TensorMeta(self.shape, self.stride(), local.dtype)
    spec = DTensorSpec(self.device_mesh, self.placements, tensor_meta=meta)
    return type(self)(local, spec, requires_grad=False)
