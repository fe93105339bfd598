"""What the Gaudi software counts: compilations, the recipe cache, CPU fallbacks, host reads."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_gaudi import emulator
from lightning_gaudi.runtime import loading


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Counts since the process started; take differences.

    Attributes:
        compilations: Graphs compiled.
        cache_hits: Graphs found in the recipe cache; None where the software does not say.
        cpu_fallbacks: Ops that ran on the CPU for want of a kernel.
        host_reads: Times the host waited for a device value; None on a card, which does not count
            them.
        host_copies: Copies of device tensors to the host; None on a card.
    """

    compilations: int
    cache_hits: int | None
    cpu_fallbacks: int
    host_reads: int | None
    host_copies: int | None

    def __sub__(self, before: Counters) -> Counters:
        """The counts between two moments."""
        return Counters(
            compilations=self.compilations - before.compilations,
            cache_hits=_difference(self.cache_hits, before.cache_hits),
            cpu_fallbacks=self.cpu_fallbacks - before.cpu_fallbacks,
            host_reads=_difference(self.host_reads, before.host_reads),
            host_copies=_difference(self.host_copies, before.host_copies),
        )


def counters() -> Counters:
    """The counts now; all 0 before the software is loaded."""
    if not loading.is_loaded():
        none = 0 if loading.is_emulated() else None
        return Counters(
            compilations=0, cache_hits=none, cpu_fallbacks=0, host_reads=none, host_copies=none
        )
    emulated = emulator.event_counts() if loading.is_emulated() else None
    return Counters(
        compilations=_stat("graph_compilation", "TotalNumber") or 0,
        cache_hits=_stat("recipe_cache", "TotalHit"),
        cpu_fallbacks=_stat("cpu_fallback", "TotalNumber") or 0,
        host_reads=emulated["host_read"] if emulated else None,
        host_copies=emulated["d2h"] if emulated else None,
    )


def cpu_fallback_ops() -> dict[str, int]:
    """CPU fallbacks since the process started by the op's name; empty where nothing says so."""
    if not loading.is_loaded():
        return {}
    found = loading.module("torch.hpu.metrics").metric_global("cpu_fallback")
    ops = None if found is None else dict(found.stats()).get("FallbackOps")
    return dict(ops) if isinstance(ops, dict) else {}


def _stat(metric: str, name: str) -> int | None:
    found = loading.module("torch.hpu.metrics").metric_global(metric)
    return None if found is None else dict(found.stats()).get(name)


def _difference(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else now - before
