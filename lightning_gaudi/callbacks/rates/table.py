"""Rates and memory as a rich table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stage.

    Attributes:
        steps: Steps of this card, warm-up included.
        step_seconds: Host time of one; None where none was timed.
        figures: Rates of all cards, and this card's memory.
    """

    steps: int
    step_seconds: float | None
    figures: Mapping[str, float]


_COLUMNS = {
    "batches/s": ("batches_per_second", 1.0, ".2f"),
    "samples/s": ("samples_per_second", 1.0, ".1f"),
    "tokens/s": ("tokens_per_second", 1.0, ".0f"),
    "GiB": ("memory_in_use_gib", 1.0, ".2f"),
    "peak GiB": ("memory_peak_gib", 1.0, ".2f"),
    "of limit %": ("memory_peak_share", 100.0, ".1f"),
}


def table_of(rows: Mapping[str, Row], *, title: str) -> Table:
    """A row for each stage; a column only where some stage has its figure.

    Args:
        rows: By stage.
        title: The title.
    """
    table = Table(title=title)
    table.add_column("stage")
    table.add_column("steps", justify="right")
    table.add_column("ms/step", justify="right")
    shown = {
        heading: column
        for heading, column in _COLUMNS.items()
        if any(column[0] in row.figures for row in rows.values())
    }
    for heading in shown:
        table.add_column(heading, justify="right")
    for stage, row in rows.items():
        cells = [
            format(row.figures[name] * factor, form) if name in row.figures else "-"
            for name, factor, form in shown.values()
        ]
        step = "-" if row.step_seconds is None else f"{row.step_seconds * 1e3:.2f}"
        table.add_row(stage, str(row.steps), step, *cells)
    return table
