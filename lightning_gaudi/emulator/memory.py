"""Live and peak bytes of the emulated HPU.

Every HPU tensor holds a `Block`, shared by all tensors on the same storage. The block's life is
the storage's life as the device sees it, so Python's own reference counts keep the figures true,
for tensors that only autograd still holds too.
"""

from __future__ import annotations

from typing import Any

CAPACITY_BYTES = 96 * 2**30
"""What ``Limit`` reports: the 96 GiB of a Gaudi 2. The emulator does not enforce it."""


class _Statistics:
    """Counters behind ``torch.hpu.memory_stats``; sizes in bytes."""

    __slots__ = ("births", "in_use", "largest", "num_allocs", "num_frees", "peak")

    def __init__(self) -> None:
        self.in_use = 0
        self.peak = 0
        self.num_allocs = 0
        self.num_frees = 0
        self.largest = 0
        self.births = 0


_statistics = _Statistics()


class Block:
    """The device memory behind one storage.

    Attributes:
        nbytes: Its size in bytes.
        writer: The pending graph that last wrote to it, or None: what a host copy must flush.
        birth: How many blocks the process had made with it; what is older has a smaller one.
    """

    __slots__ = ("__weakref__", "birth", "nbytes", "writer")

    def __init__(self, nbytes: int, writer: Any = None) -> None:
        self.nbytes = nbytes
        self.writer = writer
        # Every op comes through here; comparisons cost half of what `max` does.
        statistics = _statistics
        statistics.num_allocs += 1
        statistics.in_use = in_use = statistics.in_use + nbytes
        if in_use > statistics.peak:
            statistics.peak = in_use
        if nbytes > statistics.largest:
            statistics.largest = nbytes
        self.birth = statistics.births = statistics.births + 1

    # Bound as a default, so that a block dying while the interpreter shuts down still finds it.
    def __del__(self, statistics: _Statistics = _statistics) -> None:
        statistics.num_frees += 1
        statistics.in_use -= self.nbytes

    def resize(self, nbytes: int) -> None:
        """Follow a storage that was resized in place."""
        _statistics.in_use += nbytes - self.nbytes
        _statistics.peak = max(_statistics.peak, _statistics.in_use)
        self.nbytes = nbytes


def is_used() -> bool:
    """Whether this process has ever had memory on the device."""
    return _statistics.births > 0


def memory_stats() -> dict[str, int]:
    """The statistics under the names that ``habana_frameworks.torch.hpu.memory_stats`` uses."""
    s = _statistics
    active = s.num_allocs - s.num_frees
    return {
        "Limit": CAPACITY_BYTES,
        "InUse": s.in_use,
        "MaxInUse": s.peak,
        "NumAllocs": s.num_allocs,
        "NumFrees": s.num_frees,
        "ActiveAllocs": active,
        "MaxAllocSize": s.largest,
        # The system's counts go on from the process's start, whatever was reset.
        "TotalSystemAllocs": s.births,
        "TotalSystemFrees": s.births - active,
        "TotalActiveAllocs": active,
    }


def num_births() -> int:
    """How many blocks the process has made so far, never reset: what `Block.birth` is told by."""
    return _statistics.births


def reset_peak() -> None:
    """Make the present use the peak."""
    _statistics.peak = _statistics.in_use


def reset_accumulated() -> None:
    """Forget allocations and frees so far; what is active now stays active."""
    active = _statistics.num_allocs - _statistics.num_frees
    _statistics.num_allocs = active
    _statistics.num_frees = 0
    _statistics.largest = 0
