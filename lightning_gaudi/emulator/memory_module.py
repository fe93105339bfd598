"""What ``torch.hpu`` answers about memory (names and meaning: bridge 1.19.0, ``hpu/memory.py``).

A `device` argument may be None, an index, or anything that names an HPU; a process has one device,
so the answer does not depend on it.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from lightning_gaudi.emulator import memory
from lightning_gaudi.emulator.installation import device_count

_GIB = 2**30
_MIB = 2**20


def check_device(device: Any) -> None:
    """Check a `device` argument as the SDK does.

    Raises:
        AssertionError: The index is not one of a card of this machine.
        ValueError: The device is no HPU.
    """
    if device is None:
        return
    index: int | None
    if isinstance(device, int):
        index = device
    else:
        target = torch.device(device)
        if target.type != "hpu":
            raise ValueError(f"Expected a hpu device, but got: {device}")
        index = target.index
    if index is not None and not 0 <= index < device_count():
        raise AssertionError("Invalid device id")


def memory_stats(device: Any = None) -> dict[str, int]:
    """Memory statistics in bytes and counts.

    Returns:
        ``Limit`` (bytes of the card), ``InUse`` (bytes of the tensors that exist), ``MaxInUse``
        (its peak), ``NumAllocs`` and ``NumFrees`` (since the last
        `reset_accumulated_memory_stats`), ``ActiveAllocs`` (what exists), ``MaxAllocSize`` (bytes
        of the largest), and the system's counts, which are the same here.
    """
    check_device(device)
    return memory.memory_stats()


def memory_allocated(device: Any = None) -> int:
    """Live bytes."""
    return memory_stats(device)["InUse"]


def max_memory_allocated(device: Any = None) -> int:
    """Peak bytes since the last `reset_peak_memory_stats`."""
    return memory_stats(device)["MaxInUse"]


def memory_reserved(device: Any = None) -> int:
    """Bytes of the card: the SDK calls all of it reserved."""
    return memory_stats(device)["Limit"]


def max_memory_reserved(device: Any = None) -> int:
    """Bytes of the card, as `memory_reserved`."""
    return memory_stats(device)["Limit"]


def memory_cached(device: Any = None) -> int:
    """The old name of `memory_reserved`."""
    warnings.warn(
        "torch.hpu.memory_cached has been renamed to torch.hpu.memory_reserved",
        FutureWarning,
        stacklevel=2,
    )
    return memory_reserved(device)


def max_memory_cached(device: Any = None) -> int:
    """The old name of `max_memory_reserved`."""
    warnings.warn(
        "torch.hpu.max_memory_cached has been renamed to torch.hpu.max_memory_reserved",
        FutureWarning,
        stacklevel=2,
    )
    return max_memory_reserved(device)


def memory_usage(device: Any = None) -> int:
    """Live bytes, as `memory_allocated`."""
    return memory_stats(device)["InUse"]


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Free and total bytes."""
    stats = memory_stats(device)
    return stats["Limit"] - stats["InUse"], stats["Limit"]


def memory_summary(device: Any = None) -> str:
    """The statistics as a table to read."""
    stats = memory_stats(device)
    units = {
        "Limit": (_GIB, "GB"),
        "InUse": (_MIB, "MB"),
        "MaxInUse": (_MIB, "MB"),
        "MaxAllocSize": (_MIB, "MB"),
    }
    rule = "=" * 52
    lines = [rule, " PyTorch HPU memory summary, device ID 0".ljust(52), rule.replace("=", "-")]
    rows = []
    for name in ("Limit", "InUse", "MaxInUse", "NumAllocs", "NumFrees", "MaxAllocSize"):
        divisor, unit = units.get(name, (0, ""))
        size = f" ({stats[name] / divisor:.2f} {unit})" if divisor else ""
        rows.append(f"  {name + ':':<18} {stats[name]:>20}{size}")
    rows.append(f"  {'ActiveAllocs:':<18} {stats['ActiveAllocs']:>20}")
    return "\n".join([f"|{line}|" for line in lines] + rows) + "\n"


def reset_peak_memory_stats(device: Any = None) -> None:
    """Start measuring the peak anew: it becomes what is in use now."""
    check_device(device)
    memory.reset_peak()


def reset_accumulated_memory_stats(device: Any = None) -> None:
    """Start counting allocations and frees anew."""
    check_device(device)
    memory.reset_accumulated()


__all__ = [
    "max_memory_allocated",
    "max_memory_cached",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_cached",
    "memory_reserved",
    "memory_stats",
    "memory_summary",
    "memory_usage",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
]
