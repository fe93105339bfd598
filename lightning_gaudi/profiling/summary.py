"""What was recorded, as text: named ranges, then ops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args
from typing import Literal as _Literal

from torch.autograd.profiler_util import EventList

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import ranges

SortKey = _Literal[
    "cpu_time",
    "cpu_time_total",
    "self_cpu_time_total",
    "self_device_time_total",
    "device_time_total",
    "cpu_memory_usage",
    "self_cpu_memory_usage",
    "count",
]
SORT_KEYS: tuple[str, ...] = get_args(SortKey)


def check_sort_key(key: str) -> None:
    """Check by what ops are sorted.

    Raises:
        ConfigurationError: It is no such name.
    """
    if key not in SORT_KEYS:
        raise ConfigurationError(
            f"sort_by must be one of {', '.join(map(repr, SORT_KEYS))}, but it is {key!r}."
        )


def summary_of(events: EventList, *, names: Iterable[str], sort_by: str, row_limit: int) -> str:
    """Two tables.

    Args:
        events: What was recorded.
        names: Further ranges to list beside the device's own, such as Lightning's actions.
        sort_by: By what ops are sorted.
        row_limit: How many ops are listed; -1 for all.
    """
    averages = events.key_averages()  # type: ignore[no-untyped-call]
    by_name = {each.key: each for each in averages}
    rows = [_row(by_name[name]) for name in ranges.NAMES if name in by_name]
    others = [by_name[name] for name in names if name in by_name]
    rows += [_row(each) for each in sorted(others, key=lambda e: -e.cpu_time_total)]
    table = averages.table(sort_by=sort_by, row_limit=row_limit)
    return f"Named ranges, host time\n{_table(rows)}\n\nOps\n{table}"


def _row(average: Any) -> tuple[str, ...]:
    total_us, count = float(average.cpu_time_total), int(average.count)
    return average.key, str(count), f"{total_us / 1e3:.3f}", f"{total_us / count:.1f}"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = [("range", "times", "total ms", "mean us"), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
