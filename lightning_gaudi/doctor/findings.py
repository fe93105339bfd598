"""A finding: what was looked at, what was found, what was expected, and the fix."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "fault"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "fault")

_NUMBERS = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: A name that stays the same between versions: ``"mode"``.
        level: ``"ok"``; ``"note"``, worth knowing; ``"warning"``, some things will not work;
            ``"fault"``, the HPU cannot be used as it is.
        title: What was looked at, in words.
        found: What is there.
        expected: What should be there; empty where it is.
        fix: Commands to paste, one a line; empty where there is nothing to do.
    """

    check: str
    level: Level
    title: str
    found: str
    expected: str = ""
    fix: str = ""


def is_usable(findings: Iterable[Finding]) -> bool:
    """Whether there is no fault."""
    return all(finding.level != "fault" for finding in findings)


def release_of(version: str) -> tuple[int, ...]:
    """The numbers of a version before its build: ``"2.6.0+cpu"`` is (2, 6, 0)."""
    return tuple(int(number) for number in _NUMBERS.findall(version.split("+")[0])[:3])


def is_older(version: str, than: str) -> bool:
    """Whether a version comes before another, by its first three numbers."""
    return release_of(version) < release_of(than)
