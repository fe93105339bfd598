"""Device memory by stage."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_gaudi.runtime import device

_GIB = 2**30


@dataclass(slots=True)
class MemoryUse:
    """Memory of one stage, in bytes.

    Attributes:
        in_use: What was in use when last looked at.
        peak: The most that was in use during the stage.
        limit: What the device has.
    """

    in_use: int = 0
    peak: int = 0
    limit: int = 0

    def look(self) -> None:
        """Take what the device says now; its peak counts since the last `begin`."""
        stats = device.memory_stats()
        self.in_use = stats.get("InUse", 0)
        self.peak = max(self.peak, stats.get("MaxInUse", 0))
        self.limit = stats.get("Limit", 0)

    def as_dict(self) -> dict[str, float]:
        """``memory_in_use_gib``, ``memory_peak_gib`` and ``memory_peak_share`` of the limit."""
        if not self.limit:
            return {}
        return {
            "memory_in_use_gib": self.in_use / _GIB,
            "memory_peak_gib": self.peak / _GIB,
            "memory_peak_share": self.peak / self.limit,
        }


def begin() -> None:
    """Let the device's peak begin with what is in use now."""
    device.reset_peak_memory()
