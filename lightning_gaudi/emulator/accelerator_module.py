"""``torch.accelerator`` and pinned memory, whose C++ hooks a backend in Python cannot provide."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator import device_module
from lightning_gaudi.emulator.patching import replace
from lightning_gaudi.emulator.tensor import HPUTensor


def _memory_stats(device_index: Any = None) -> OrderedDict[str, Any]:
    return OrderedDict(device_module.memory_stats())


def pin_memory(self: Tensor, device: Any = None) -> Tensor:
    """A copy that says it is pinned; host memory is host memory here.

    Raises:
        RuntimeError: The tensor is not on the host.
    """
    if type(self) is HPUTensor:
        raise RuntimeError("cannot pin 'hpu' tensors: only dense CPU tensors can be pinned")
    if is_pinned(self):
        return self
    pinned = self.clone()
    pinned._is_pinned = True  # type: ignore[attr-defined]
    return pinned


def is_pinned(self: Tensor, device: Any = None) -> bool:
    """Whether `pin_memory` made this tensor."""
    return bool(getattr(self, "_is_pinned", False))


def attach() -> None:
    """Put these in place of PyTorch's."""
    for name in (
        "synchronize",
        "empty_cache",
        "memory_allocated",
        "max_memory_allocated",
        "memory_reserved",
        "max_memory_reserved",
        "reset_peak_memory_stats",
        "reset_accumulated_memory_stats",
    ):
        setattr(torch.accelerator, name, getattr(device_module, name))
    torch.accelerator.memory_stats = _memory_stats
    torch.accelerator.get_memory_info = device_module.mem_get_info
    replace(Tensor, "pin_memory", pin_memory)
    replace(Tensor, "is_pinned", is_pinned)
