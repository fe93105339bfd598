"""The monitor's books as rich tables."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_gaudi.callbacks.monitor.findings import NOUNS, Finding
from lightning_gaudi.callbacks.monitor.ledger import Ledger

COLUMNS = {
    "compilations": "compiled",
    "cache_hits": "cached",
    "host_reads": "reads",
    "host_copies": "to host",
    "cpu_fallbacks": "fallback",
    "captures": "capture",
    "replays": "replay",
}
_MAX_LINES = 12


def shown_columns(total: dict[str, int]) -> list[str]:
    """The counts to show: graphs only where there are any, so that it fits 80 columns."""
    return [name for name in COLUMNS if name not in ("captures", "replays") or total[name]]


def tables_of(ledger: Ledger, *, has_host_reads: bool) -> Group:
    """Counts by stage and, below, the lines that caused them.

    Args:
        ledger: The books.
        has_host_reads: Whether host reads were looked for.
    """
    counts = Table(title="Compile monitor")
    counts.add_column("stage", no_wrap=True)
    counts.add_column("steps", justify="right")
    total = ledger.total
    names = shown_columns(asdict(total))
    for name in names:
        counts.add_column(COLUMNS[name], justify="right")
    rows = [(stage, totals.num_steps, totals.counts) for stage, totals in ledger.stages.items()]
    if len(rows) > 1:
        rows.append(("all", sum(steps for _, steps, _ in rows), total))
    num_late = sum(row.num_steps for row in ledger.rows if not row.is_warmup)
    rows.append(("after warm-up", num_late, ledger.late))
    for stage, num_steps, of_stage in rows:
        cells = [
            "-"
            if name in ("host_reads", "host_copies") and not has_host_reads
            else str(getattr(of_stage, name))
            for name in names
        ]
        counts.add_row(stage.replace("_", " "), str(num_steps), *cells)
    findings = [finding for kind in NOUNS for finding in ledger.worst(kind)]
    if not findings:
        return Group(counts)
    lines = Table(title="After the warm-up")
    lines.add_column("what")
    lines.add_column("times", justify="right")
    lines.add_column("line and cause", overflow="fold")
    for finding in findings[:_MAX_LINES]:
        lines.add_row(NOUNS[finding.kind][0], str(finding.num_late), _cell(finding))
    if len(findings) > _MAX_LINES:
        lines.add_row("", "", f"and {len(findings) - _MAX_LINES} more lines")
    return Group(counts, lines)


def print_or_say_why(what: RenderableType) -> str:
    """Print something; a closed pipe, say, must not hide the run's result.

    Returns:
        Why it could not be printed; empty where it was.
    """
    try:
        Console().print(what, soft_wrap=isinstance(what, Text), highlight=False)
    except (OSError, UnicodeError) as error:
        return str(error)
    return ""


def _cell(finding: Finding) -> Text:
    cell = Text(f"{finding.place}  {finding.cause}")
    if finding.texts:
        cell.append(f"\n{finding.texts[0]}")
        if len(finding.texts) > 1:
            cell.append(f" (and {len(finding.texts) - 1} more)")
    return cell
