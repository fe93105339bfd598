"""Loading onto the emulated HPU: ``torch.load(map_location="hpu")`` in all its forms.

PyTorch restores storages first and builds tensors on them afterwards. A storage that is to be on
the HPU gets its `Block` here, and a tensor built on such a storage becomes an `HPUTensor`, so
parameters, modules, views on one storage and ``weights_only`` come out as for any device.
Saving needs nothing here: tensors pickle as plain CPU tensors (see `methods`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator import events
from lightning_gaudi.emulator.memory import Block
from lightning_gaudi.emulator.strict import is_strict, narrow
from lightning_gaudi.emulator.tensor import wrap
from lightning_gaudi.emulator.transfer import check_index

_plain_rebuild = torch._utils._rebuild_tensor
_BEFORE_PYTORCHS_OWN = 5


def _tag(storage: Any) -> None:
    """No storage names our device: files hold CPU tensors."""


def _restore(storage: Any, location: str) -> Any:
    if not location.startswith("hpu"):
        return None
    check_index(torch.device(location))
    events.emit("h2d", "load")
    untyped = getattr(storage, "_untyped_storage", storage)
    untyped._hpu_block = Block(untyped.nbytes())
    return storage


def _rebuild_tensor(storage: Any, storage_offset: Any, size: Any, stride: Any) -> Tensor:
    tensor: Tensor = _plain_rebuild(storage, storage_offset, size, stride)  # type: ignore[no-untyped-call]
    block = getattr(getattr(storage, "_untyped_storage", storage), "_hpu_block", None)
    if block is None:
        return tensor
    if is_strict():
        narrow(tensor)
    return wrap(tensor, block)


def attach() -> None:
    """Teach ``torch.load`` our device."""
    torch.serialization.register_package(_BEFORE_PYTORCHS_OWN, _tag, _restore)
    torch._utils._rebuild_tensor = _rebuild_tensor
