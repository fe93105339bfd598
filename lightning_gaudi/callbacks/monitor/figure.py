"""The timeline: what happened in each step, as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_gaudi.callbacks.monitor.findings import count_of
from lightning_gaudi.callbacks.monitor.ledger import places_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROWS = (
    ("compilations", "compilations", "#c0392b"),
    ("host_reads", "host reads", "#2c6fbb"),
    ("cpu_fallbacks", "CPU fallbacks", "#b8860b"),
)
_STAGE_COLORS = {"fit": "#ffffff", "validate": "#e3ecf7", "test": "#efe6f5", "predict": "#e5f2e8"}
_WARMUP_COLOR = "#e9e9e9"
_MAX_BARS = 400
_MAX_BANDS = 400


def png_of(runs: Sequence[tuple[str, dict[str, Any]]]) -> bytes:
    """Timelines as a PNG. No state of matplotlib's that others share is touched.

    Args:
        runs: Title and facts (see `facts_of`) of each run, drawn one below the other.
    """
    file = io.BytesIO()
    figure_of(runs).savefig(file, format="png", dpi=130)
    return file.getvalue()


def figure_of(runs: Sequence[tuple[str, dict[str, Any]]]) -> Figure:
    """Timelines as a figure. Runs share their scales, so that they can be compared.

    Args:
        runs: Title and facts of each run, drawn one below the other.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = [
        kind
        for number, kind in enumerate(_ROWS)
        if number < 2 or any(facts["total"][kind[0]] for _, facts in runs)
    ]
    figure = Figure(
        figsize=(10.5, (1.15 * len(kinds) + 0.75) * len(runs) + 0.3), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(kinds) * len(runs), 1, squeeze=False)[:, 0]
    bars = [_bars(facts["timeline"]) for _, facts in runs]
    for number, ((title, facts), of_run) in enumerate(zip(runs, bars, strict=True)):
        own = axes[number * len(kinds) : (number + 1) * len(kinds)]
        for place, (axis, (name, label, color)) in enumerate(zip(own, kinds, strict=True)):
            highest = max((bar[name] for all_ in bars for bar in all_), default=0)
            _draw(axis, of_run, name, color, highest)
            axis.set_ylabel(label, fontsize=8)
            axis.tick_params(labelbottom=place == len(kinds) - 1)
        own[0].set_title(_title(title, facts), fontsize=10, loc="left")
        own[-1].set_xlabel(_caption(of_run), fontsize=8)
    return figure


def _title(title: str, facts: dict[str, Any]) -> str:
    total, late = facts["total"], facts["after_warmup"]
    text = (
        f"{count_of('compilation', total['compilations'])} ({late['compilations']} after the "
        f"warm-up), {count_of('host_read', total['host_reads'])} ({late['host_reads']} after it)"
    )
    return f"{title}: {text}" if title else text


def _caption(bars: list[dict[str, Any]]) -> str:
    if not bars:
        return "no steps"
    stages = [name for name in _STAGE_COLORS if any(bar["stage"] == name for bar in bars)]
    text = "steps in the order in which they ran"
    widest = max(bar["num_steps"] for bar in bars)
    if widest > 1:
        text += f"; a bar is up to {widest} steps together"
    colored = [f"{name} {_COLOR_NAMES[name]}" for name in stages if name in _COLOR_NAMES]
    if len(stages) > 1 and colored:
        text += f"; background: {', '.join(colored)}"
    if any(bar["is_warmup"] for bar in bars):
        text += "; grey: warm-up"
    return text


_COLOR_NAMES = {"validate": "blue", "test": "violet", "predict": "green"}


def _bars(timeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps as at most some hundred bars: those of one stage that come close together."""
    num_steps = sum(row["num_steps"] for row in timeline)
    width = -(-num_steps // _MAX_BARS)
    bars: list[dict[str, Any]] = []
    keys = [(row["stage"], row["is_warmup"], row["num_steps"]) for row in timeline]
    for row, place in zip(timeline, places_of(keys, width), strict=True):
        if place == len(bars):
            bars.append(dict(row))
        else:
            for name in ("num_steps", *(name for name, _, _ in _ROWS)):
                bars[place][name] += row[name]
    return bars


def _draw(axis: Axes, bars: list[dict[str, Any]], name: str, color: str, highest: float) -> None:
    from matplotlib.ticker import MaxNLocator

    lefts, right = [], 0
    for bar in bars:
        lefts.append(right)
        right += bar["num_steps"]
    _draw_bands(axis, bars, lefts)
    filled = 0.86 if len(bars) < 80 else 1.0  # with gaps, as long as they can be seen
    axis.bar(
        [left + 0.5 + (1 - filled) / 2 for left in lefts],
        [bar[name] for bar in bars],
        width=[max(bar["num_steps"] * filled, right / 600) for bar in bars],
        align="edge",
        color=color,
        linewidth=0,
    )
    axis.set_xlim(0.5, max(right, 1) + 0.5)
    if right <= 10:
        axis.set_xticks(range(1, right + 1))
    else:
        axis.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    axis.set_ylim(0, max(highest, 1) * 1.1)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _draw_bands(axis: Axes, bars: list[dict[str, Any]], lefts: list[int]) -> None:
    """Colour the background by stage, and grey where steps are warm-up."""
    bands: list[list[Any]] = []
    has_stages = len({bar["stage"] for bar in bars}) > 1
    for bar, left in zip(bars, lefts, strict=True):
        color = _STAGE_COLORS.get(bar["stage"], "#ffffff") if has_stages else "#ffffff"
        color = _WARMUP_COLOR if bar["is_warmup"] else color
        if bands and bands[-1][0] == color:
            bands[-1][2] = left + bar["num_steps"]
        else:
            bands.append([color, left, left + bar["num_steps"]])
    if len(bands) > _MAX_BANDS:  # stripes too thin to be seen
        return
    for color, left, right in bands:
        if color != "#ffffff":
            axis.axvspan(left + 0.5, right + 0.5, color=color, linewidth=0, zorder=0)
