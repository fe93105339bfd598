"""The counts of `HPUGraphCallback`: by target, as metrics, as a table."""

from __future__ import annotations

from rich.table import Table

from lightning_gaudi.graphs.stats import GraphStats


class CallbackStats(GraphStats):
    """The counts over all targets, and by target.

    ``graphs`` and ``graph_bytes`` tell of the graphs that are kept now or, after a run, of those
    that it kept at its end.

    Attributes:
        per_target: The counts of each target by name.
    """

    __slots__ = ("per_target",)

    def __init__(self, per_target: dict[str, GraphStats]) -> None:
        super().__init__()
        self.per_target = per_target
        for stats in per_target.values():
            self.add(stats)


def table_of(stats: CallbackStats) -> Table:
    """The counts as a table, a row for each target; seconds are those that captures took."""
    table = Table(title="HPU graphs")
    table.add_column("target")
    columns = ("captured", "replayed", "padded", "eager", "evicted", "seconds", "MiB")
    for name in columns:
        table.add_column(name, justify="right")
    rows = [*stats.per_target.items()]
    if len(rows) > 1:
        rows.append(("all", stats))
    for name, s in rows:
        table.add_row(
            name,
            str(s.captures),
            str(s.replays),
            str(s.padded_calls),
            str(s.eager_calls),
            str(s.evictions),
            f"{s.capture_seconds:.2f}",
            f"{s.graph_bytes / 2**20:.2f}",
        )
    return table


def add_counts(stats: GraphStats, past: GraphStats, *, with_graphs: bool) -> None:
    """Add the counts of earlier runs, and of their graphs only where there are no later ones."""
    graphs, num_bytes = stats.graphs, stats.graph_bytes
    stats.add(past)
    if not with_graphs:
        stats.graphs, stats.graph_bytes = graphs, num_bytes
