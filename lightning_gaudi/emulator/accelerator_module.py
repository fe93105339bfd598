"""``torch.accelerator``, whose C++ hooks a backend in Python cannot provide.

What is not replaced here asks ``torch.hpu`` by itself.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

from lightning_gaudi.emulator import device_module, pinned, report_files, streams

_DTYPES = frozenset(
    {
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    }
)
"""Dtypes of tensors on the device; the 64-bit ones narrow on a card."""


def _memory_stats(device_index: Any = None, /) -> OrderedDict[str, Any]:
    """The SDK's statistics, and the same figures under PyTorch's names."""
    stats = device_module.memory_stats()
    return OrderedDict(
        **{
            "allocated_bytes.all.current": stats["InUse"],
            "allocated_bytes.all.peak": stats["MaxInUse"],
            "allocation.all.current": stats["ActiveAllocs"],
            "num_device_alloc": stats["NumAllocs"],
            "num_device_free": stats["NumFrees"],
        },
        **stats,
    )


def _get_device_capability(device: Any = None, /) -> dict[str, Any]:
    """What the device can do, as PyTorch describes it."""
    return {"supported_dtypes": set(_DTYPES)}


class _DeviceIndex:
    """A ``with`` block on a device by its index; None changes nothing.

    Raises:
        RuntimeError: Another index than 0.
    """

    def __init__(self, device: int | None, /) -> None:
        if device is not None:
            device_module.set_device(device)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc_info: object) -> None:
        return None


def attach() -> None:
    """Put these in place of PyTorch's, with streams, pinned memory and files of metrics."""
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
    torch.accelerator.empty_host_cache = device_module.empty_cache
    torch.accelerator.get_device_capability = _get_device_capability  # type: ignore[assignment]
    torch.accelerator.set_device_index = device_module.set_device
    torch.accelerator.device_index = _DeviceIndex  # type: ignore[misc, assignment]
    streams.attach()
    pinned.attach()
    report_files.attach()
