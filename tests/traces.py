"""Reads the Chrome traces that the tests of profiling look at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Range:
    """A named range of a trace; times in us."""

    name: str
    start: float
    end: float
    thread: Any = None

    def holds(self, other: Range) -> bool:
        """Whether another range of the same thread lies in this one."""
        return (
            self.thread == other.thread
            and self.start <= other.start
            and other.end <= self.end
            and self is not other
        )


def trace_of(profile: torch.profiler.profile, folder: Path) -> Path:
    """Write a profile's trace."""
    path = folder / "trace.json"
    profile.export_chrome_trace(str(path))
    return path


def ranges_in(path: Path) -> list[Range]:
    """The ranges that somebody named, in order of their start."""
    events = json.loads(path.read_text())["traceEvents"]
    found = [
        Range(event["name"], event["ts"], event["ts"] + event["dur"], event["tid"])
        for event in events
        if event.get("ph") == "X" and event.get("cat") == "user_annotation"
    ]
    return sorted(found, key=lambda each: each.start)
