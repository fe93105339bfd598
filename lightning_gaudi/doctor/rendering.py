"""Findings as text for people, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_gaudi.doctor.findings import LEVELS, Finding, is_usable
from lightning_gaudi.runtime.facts import Facts

JSON_VERSION = 1
_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "fault": "bold red"}


def print_findings(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Print a line for each finding, and below those that need something done about them.

    Args:
        findings: What was found.
        console: Where to; standard output by default.
    """
    console = console or Console(highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(
            Text(finding.level, _STYLES[finding.level]), finding.title, Text(finding.found)
        )
    console.print(table)
    for level in reversed(LEVELS[2:]):
        for finding in findings:
            if finding.level == level:
                _print_remedy(console, finding)
    counts = {level: sum(f.level == level for f in findings) for level in LEVELS}
    faults, warnings = counts["fault"], counts["warning"]
    found = f"{_number(faults, 'fault')}, {_number(warnings, 'warning')}"
    verdict = "The HPU is usable" if is_usable(findings) else "The HPU is not usable as it is"
    console.print(f"\n{verdict}: {found}.", style="bold")


def as_json(facts: Facts, findings: Sequence[Finding]) -> dict[str, Any]:
    """One object: ``version`` (of this format), ``is_usable``, ``findings``, ``facts``.

    Each finding has ``check``, ``level``, ``title``, ``found``, ``expected`` and ``fix``, all
    strings. Later versions of the format may add keys, and remove or rename none.
    """
    return {
        "version": JSON_VERSION,
        "is_usable": is_usable(findings),
        "findings": [asdict(finding) for finding in findings],
        "facts": facts.as_dict(),
    }


def _print_remedy(console: Console, finding: Finding) -> None:
    console.print()
    head = Text(finding.level, _STYLES[finding.level])
    console.print(head + Text(f": {finding.title}: {finding.found}"), soft_wrap=True)
    if finding.expected:
        console.print(Text(f"    expected: {finding.expected}"), soft_wrap=True)
    for line in finding.fix.splitlines():
        console.print(
            Text(f"    $ {line}" if not line.startswith("#") else f"    {line}"), soft_wrap=True
        )


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
