"""Live and peak bytes of the emulated HPU, and the limit on them where there is one.

Every HPU tensor holds a `Block`, shared by all tensors on the same storage. The block's life is
the storage's life as the device sees it, so Python's own reference counts keep the figures true,
for tensors that only autograd still holds too.
"""

from __future__ import annotations

import os
import sys
from typing import Any

CAPACITY_BYTES = 96 * 2**30
"""What ``Limit`` reports where none is enforced: the 96 GiB of a Gaudi 2."""

LIMIT = "LIGHTNING_GAUDI_EMULATOR_MEMORY_GIB"

_limit: int | None = None


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


def _init_within_limit(self: Block, nbytes: int, writer: Any = None) -> None:
    """`Block.__init__` where memory is limited."""
    statistics = _statistics
    if statistics.in_use + nbytes > (_limit or 0):
        # The block dies at once, and then counts as freed.
        self.nbytes = 0
        statistics.num_allocs += 1
        raise _out_of_memory(nbytes)
    _plain_init(self, nbytes, writer)


def _resize_within_limit(self: Block, nbytes: int) -> None:
    """`Block.resize` where memory is limited."""
    if _statistics.in_use + nbytes - self.nbytes > (_limit or 0):
        raise _out_of_memory(nbytes)
    _plain_resize(self, nbytes)


_plain_init, _plain_resize = Block.__init__, Block.resize


def _out_of_memory(nbytes: int) -> RuntimeError:
    """What the bridge raises (``device_memory.cpp``: a fatal message, which is a RuntimeError)."""
    distributed = sys.modules.get("torch.distributed")
    is_one_of_several = distributed is not None and distributed.is_initialized()
    rank = distributed.get_rank() if distributed is not None and is_one_of_several else 0
    return RuntimeError(
        f"[Rank:{rank}] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::{nbytes} "
        f"({nbytes / 2**20:g})MB"
    )


def set_limit(nbytes: int | None) -> None:
    """Let allocations beyond a number of bytes in use fail from now on; None for no limit.

    Without one, allocating costs nothing more.
    """
    global _limit
    _limit = nbytes
    block: Any = Block
    block.__init__ = _plain_init if nbytes is None else _init_within_limit
    block.resize = _plain_resize if nbytes is None else _resize_within_limit


def attach() -> None:
    """Take the limit from ``LIGHTNING_GAUDI_EMULATOR_MEMORY_GIB``, in GiB; a fraction serves too.

    Raises:
        ValueError: It is no number above 0.
    """
    text = os.environ.get(LIMIT, "")
    if not text:
        return
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 0 < gib < float("inf"):
        raise ValueError(f"{LIMIT} must be a number of GiB above 0, but it is {text!r}.")
    set_limit(int(gib * 2**30))


def is_used() -> bool:
    """Whether this process has ever had memory on the device."""
    return _statistics.births > 0


def memory_stats() -> dict[str, int]:
    """The statistics under the names that ``habana_frameworks.torch.hpu.memory_stats`` uses."""
    s = _statistics
    active = s.num_allocs - s.num_frees
    return {
        "Limit": CAPACITY_BYTES if _limit is None else _limit,
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
