"""Timing and reporting that all benchmarks share.

Two things are compared in turns (a, b, a, b, ...), so that a machine whose speed drifts does not
favour one of them. What is reported is the median of the rounds.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a report.

    Attributes:
        what: What was measured.
        against: What it is held against; empty for an absolute figure.
        measured: The figure.
        unit: Its unit: ``"us"``, ``"times as fast"`` and so on.
        target: What it must reach; None where it is only told.
        better: Whether lower or higher figures are better.
        detail: The two figures behind a ratio, for the reader.
    """

    what: str
    against: str
    measured: float
    unit: str
    target: float | None = None
    better: Literal["lower", "higher"] = "lower"
    detail: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        if self.better == "lower":
            return self.measured <= self.target
        return self.measured >= self.target


def seconds_per_call(
    run: Callable[[], object], calls: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Time a number of calls in a row; seconds for one."""
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) / calls


def in_turns(
    runs: Sequence[Callable[[], object]],
    *,
    rounds: int = 15,
    calls: int = 20,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Time several things in turns.

    Args:
        runs: What to call.
        rounds: How often each has its turn.
        calls: Calls in one turn.
        clock: What tells the time; `time.thread_time` leaves out what other processes take.

    Returns:
        For each, the median over its turns of the seconds for one call.
    """
    for run in runs:
        seconds_per_call(run, max(calls // 4, 2))
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, found in zip(runs, times, strict=True):
            found.append(seconds_per_call(run, calls, clock))
    return [statistics.median(found) for found in times]


def machine() -> str:
    """The machine and the versions that figures belong to."""
    return (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def report(title: str, rows: Sequence[Row], json_path: Path | None) -> bool:
    """Print the rows as a table, and write them to a JSON file where one is asked for.

    Returns:
        Whether all targets are met.
    """
    table = Table(title=f"{title}\n{machine()}")
    for name in ("what", "against", "measured", "target", "met"):
        table.add_column(name)
    for row in rows:
        sign = "at most" if row.better == "lower" else "at least"
        target = "" if row.target is None else f"{sign} {row.target:g}"
        met = {True: "yes", False: "[bold red]no[/]", None: ""}[row.is_met]
        detail = f"\n[dim]{row.detail}[/]" if row.detail else ""
        table.add_row(row.what + detail, row.against, f"{row.measured:.3g} {row.unit}", target, met)
    Console().print(table)
    if json_path is not None:
        document = {"title": title, "machine": machine(), "rows": [asdict(row) for row in rows]}
        json_path.write_text(json.dumps(document, indent=2))
    return all(row.is_met is not False for row in rows)
