"""Limits on what a run may do, and the message where one is exceeded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lightning_gaudi.callbacks.monitor.findings import Finding, count_of
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime.recording import Counts

_MAX_LINES = 5

# The counts that can have a limit, with the kind of finding that tells of them.
LIMITED = {
    "compilations": "compilation",
    "host_reads": "host_read",
    "host_copies": "host_copy",
    "cpu_fallbacks": "cpu_fallback",
}


def check_count(name: str, value: Any) -> None:
    """Check a limit.

    Raises:
        ConfigurationError: It is no whole number of 0 or more.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(
            f"{name} must be a whole number of 0 or more, or be left out for no limit, but it is "
            f"{value!r}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """A limit that is exceeded.

    Attributes:
        name: Of the count: ``"host_reads"``.
        limit: How many were allowed.
        count: How many there were.
        kind: Of the findings that tell of them.
    """

    name: str
    limit: int
    count: int
    kind: str


def exceeded(limits: dict[str, int], counts: Counts) -> list[Excess]:
    """The limits that some counts exceed."""
    return [
        Excess(name=name, limit=limit, count=getattr(counts, name), kind=LIMITED[name])
        for name, limit in limits.items()
        if getattr(counts, name) > limit
    ]


def message_for(excess: Excess, setting: str, when: str, findings: Iterable[Finding]) -> str:
    """What a user reads: the budget, the count, the worst lines with why, and what to change.

    Args:
        excess: The limit.
        setting: How the user wrote it: ``"max_host_reads=0"``.
        when: Where it was noticed: ``"in step 7 of fit, after 3 warm-up steps"``.
        findings: What tells of it, the worst first.
    """
    found = list(findings)
    lines = [f"{setting} is exceeded: {count_of(excess.kind, excess.count)} {when}."]
    for finding in found[:_MAX_LINES]:
        lines.append(f"  {finding.describe(finding.num_late)}")
    if len(found) > _MAX_LINES:
        lines.append(f"  and {len(found) - _MAX_LINES} more lines")
    remedies = dict.fromkeys(finding.remedy for finding in found[:_MAX_LINES])
    lines += [f"What to change: {remedy}" for remedy in remedies]
    if not found:
        lines.append("  A card does not say on which lines; the emulated HPU does.")
    return "\n".join(lines)
