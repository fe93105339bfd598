"""The report of all benchmarks: figures and targets as a page, a picture, and what has changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import Row

NOTICEABLE = 0.15
"""A figure that is worse than the last one by more than this share is marked."""

_MET = {True: "yes", False: "**no**", None: ""}
_SHORT = 25  # names of fewer letters say too little without their benchmark's
_GOOD, _BAD = "#2b7a4b", "#b3402a"


@dataclass(frozen=True, kw_only=True)
class Section:
    """The figures of one benchmark.

    Attributes:
        title: What it measures.
        rows: Its figures.
    """

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Results:
    """All figures of one run.

    Attributes:
        date: The day, as ``2026-01-31``.
        machine: The machine and what ran on it.
        versions: Names and versions of the libraries.
        sections: The benchmarks.
    """

    date: str
    machine: str
    versions: dict[str, str]
    sections: tuple[Section, ...]

    @property
    def rows(self) -> list[Row]:
        """The figures of all benchmarks."""
        return [row for section in self.sections for row in section.rows]

    def to_json(self) -> str:
        """The figures as text that `from_json` reads."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Results:
        """Read what `to_json` wrote."""
        content: dict[str, Any] = json.loads(text)
        sections = tuple(
            Section(title=section["title"], rows=tuple(Row(**row) for row in section["rows"]))
            for section in content.pop("sections")
        )
        return Results(sections=sections, **content)


def key_of(row: Row) -> tuple[str, str]:
    """What a figure is told by from one run to the next."""
    return row.what, row.against


def change(row: Row, last: Row | None) -> str:
    """What has become of a figure since the last run: the old one, and a mark where it is worse."""
    if last is None:
        return "new"
    text = f"{last.measured:.3g}"
    loss = row.measured - last.measured if row.better == "lower" else last.measured - row.measured
    is_worse = loss > NOTICEABLE * abs(last.measured) and loss > 0
    return f"{text} (**worse**)" if is_worse else text


def write_page(results: Results, last: Results | None, picture: str) -> str:
    """The report in Markdown.

    Args:
        results: The figures.
        last: Those of the last run; None where there are none.
        picture: The plot's path, seen from the page.
    """
    before = {} if last is None else {key_of(row): row for row in last.rows}
    with_target = [row for row in results.rows if row.target is not None]
    num_met = sum(row.is_met is True for row in with_target)
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    lines = [
        "# Benchmark results",
        "",
        "`make bench` writes this page. Times are those of a machine without a card, on the "
        "emulated HPU: they say",
        "what the software costs the host, and nothing of a card's speed.",
        "",
        f"- {results.date}; {results.machine}",
        f"- {versions}",
        f"- {num_met} of {len(with_target)} targets met",
    ]
    if last is not None:
        where = "the same machine" if last.machine == results.machine else last.machine
        lines.append(f"- last time: {last.date}, {where}")
    lines += ["", f"![Figures against their targets]({picture})", ""]
    for section in results.sections:
        lines += [
            f"## {section.title}",
            "",
            "| what | against | measured | target | met | last time |",
            "| --- | --- | --- | --- | --- | --- |",
            *(_line(row, before.get(key_of(row))) for row in section.rows),
            "",
        ]
    return "\n".join(lines)


def _line(row: Row, last: Row | None) -> str:
    sign = "at most" if row.better == "lower" else "at least"
    cells = (
        row.what + (f"<br>{row.detail}" if row.detail else ""),
        row.against,
        f"{row.measured:.3g} {row.unit}".strip(),
        "" if row.target is None else f"{sign} {row.target:g}",
        _MET[row.is_met],
        change(row, last),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def score(row: Row) -> float:
    """How far a figure is beyond its target: 1 at the target, 2 twice as good."""
    assert row.target
    if row.better == "higher":
        return row.measured / row.target
    return row.target / max(row.measured, 1e-9)


def draw(sections: Sequence[Section], path: Path) -> None:
    """Draw how each figure stands to its target, as a PNG.

    Targets of 0 (no compilation, no host read) have no ratio; the page tells them.

    Args:
        sections: The figures.
        path: The picture's file.
    """
    from matplotlib.figure import Figure

    named = [
        (f"{section.title}: {row.what}" if len(row.what) < _SHORT else row.what, row)
        for section in sections
        for row in section.rows
        if row.target
    ][::-1]
    names, shown = [name for name, _ in named], [row for _, row in named]
    scores = [score(row) for row in shown]
    figure = Figure(figsize=(10, 1.2 + 0.34 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    colours = [_GOOD if row.is_met else _BAD for row in shown]
    axes.barh(range(len(shown)), scores, color=colours, height=0.62)
    for place, (row, value) in enumerate(zip(shown, scores, strict=True)):
        sign = "≤" if row.better == "lower" else "≥"
        axes.annotate(
            f"{row.measured:.3g} ({sign} {row.target:g})",
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlim(0, max([*scores, 1]) * 1.25)
    axes.set_xlabel("target = 1; longer is better (emulated HPU, CPU time)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
