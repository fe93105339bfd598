"""The full run over PyTorch's table of ops is asked for with ``-m opinfo``; it takes minutes.

pytest tests/emulator/opinfo -m opinfo -n 2
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

_FULL_RUNS = frozenset({"test_ops.py", "test_modes.py", "test_modules.py"})


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without ``-m opinfo`` not even the names of the thousand tests are made."""
    is_asked_for = config.getoption("markexpr", default="") == "opinfo"
    return True if collection_path.name in _FULL_RUNS and not is_asked_for else None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the pass rate."""
    reports = [
        (report, dict(report.user_properties))
        for key in ("passed", "failed")
        for report in terminalreporter.stats.get(key, [])
        if report.when == "call" and "opinfo_entry" in dict(report.user_properties)
    ]
    if not reports:
        return
    equal = [p for r, p in reports if r.outcome == "passed" and not p["opinfo_listed"]]
    entries = {p["opinfo_entry"] for _, p in reports}
    unequal_entries = entries - {p["opinfo_entry"] for p in equal}
    unequal_entries |= {p["opinfo_entry"] for _, p in reports if p not in equal}
    total = {
        name: sum(p.get(name, 0) for p in equal)
        for name in ("num_samples", "num_calls", "num_refused")
    }
    terminalreporter.section("PyTorch's table of ops: hpu against cpu")
    terminalreporter.write_line(
        f"{len(equal)} of {len(reports)} pairs of entry and dtype are equal "
        f"({100 * len(equal) / len(reports):.2f} %), "
        f"{len(entries) - len(unequal_entries)} of {len(entries)} entries in every dtype"
    )
    terminalreporter.write_line(
        f"{total['num_samples']} samples, {total['num_calls']} calls on each device, of which "
        f"both refuse {total['num_refused']}; {sum(r.duration for r, _ in reports):.0f} s"
    )
