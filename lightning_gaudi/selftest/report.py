"""The report: one JSON object to send back, and what a person sees meanwhile."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lightning_gaudi.doctor.findings import Finding
from lightning_gaudi.doctor.rendering import as_json
from lightning_gaudi.runtime.facts import Facts
from lightning_gaudi.selftest.runner import Result
from lightning_gaudi.whole_files import write_whole

VERSION = 1
_STYLES = {"passed": "green", "failed": "bold red", "skipped": "dim", "answered": "cyan"}


def make_report(
    facts: Facts, findings: Sequence[Finding], results: Sequence[Result], *, mode: str
) -> dict[str, Any]:
    """One object: ``version`` (of this format), ``written``, ``is_emulated``, ``mode``,
    ``has_passed``, ``counts`` by status, ``checks`` and ``doctor``.
    """  # noqa: D205 - one sentence
    counts = Counter([result["status"] for result in results])
    return {
        "version": VERSION,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "is_emulated": facts.is_emulator_requested,
        "mode": mode,
        "has_passed": not counts["failed"] and bool(counts["passed"]),
        "counts": dict(counts),
        "checks": list(results),
        "doctor": as_json(facts, findings),
    }


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write the report as a whole file.

    Raises:
        OSError: It cannot be written.
    """
    write_whole(path, (json.dumps(report, indent=1, default=str) + "\n").encode())


def print_result(console: Console, result: Result) -> None:
    """Print a check's line, and why where it did not pass."""
    status = Text(f"{result['status']:<9}", _STYLES[result["status"]])
    seconds = f"{result['seconds']:>6.1f} s"
    console.print(status + Text(f"{seconds}  {result['name']}: {result['title']}"), soft_wrap=True)
    if result["status"] in ("failed", "skipped"):
        first = str(result["reason"]).splitlines()[0]
        console.print(Text(f"{'':<19}{first}"), soft_wrap=True)


def print_end(console: Console, report: dict[str, Any], path: Path) -> None:
    """Print the verdict and where the report is."""
    counts = ", ".join(f"{number} {status}" for status, number in report["counts"].items())
    where = "on the EMULATED HPU, which says nothing of a card" if report["is_emulated"] else ""
    console.print(Text(f"\n{counts} {where}".rstrip() + "."), style="bold", soft_wrap=True)
    console.print(Text(f"Report: {path}"), soft_wrap=True)
    if not report["is_emulated"]:
        console.print(
            "Please send that file to the project: nothing else tells it how a card behaves."
        )
