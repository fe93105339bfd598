"""What ``lightning-gaudi plan`` reads, forecasts and prints."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lightning_gaudi.data.plan import (
    Forecast,
    forecast_buckets,
    forecast_unbucketed,
    recommend,
)
from lightning_gaudi.data.reading import read_table
from lightning_gaudi.data.tokenizing import Tokenizing, limit_of
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.whole_files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_plan(given: argparse.Namespace, console: Console | None = None) -> None:
    """Read the data, print the forecasts and what to use.

    Args:
        given: The options of `lightning_gaudi.cli.plan`.
        console: Where to print; standard output by default.

    Raises:
        ConfigurationError: The data cannot be read, or an option has a value that it cannot have.
    """
    console = console or Console()
    lengths, num_fields, limit, num_cut = _read_lengths(given)
    forecasts = forecast_buckets(
        lengths,
        given.batch_size,
        given.max_buckets,
        multiple_of=given.multiple_of,
        limit=limit,
        num_fields=num_fields,
    )
    unbucketed = forecast_unbucketed(lengths, given.batch_size, num_fields=num_fields)
    chosen = recommend(forecasts, given.max_padding)
    _print_lengths(console, given.data, lengths, num_cut, limit)
    console.print(_table(forecasts, unbucketed, chosen))
    _print_advice(console, forecasts, chosen, given)
    if given.json is not None:
        _write_json(given.json, forecasts, unbucketed, chosen)
        console.print(f"Forecasts: {given.json}", soft_wrap=True)
    if given.plot is not None:
        _write_plot(given.plot, lengths, forecasts, unbucketed, chosen, given)
        console.print(f"Plot: {given.plot}", soft_wrap=True)


def _read_lengths(given: argparse.Namespace) -> tuple[list[int], int, int | None, int]:
    """Give the lengths in tokens, the number of token fields, a text's limit and how many are cut.

    All as `TextDataModule` has them.
    """
    if given.max_length is not None and given.max_length < 1:
        raise ConfigurationError(
            f"--max-length must be a whole number above 0, but it is {given.max_length}."
        )
    tokenizer = _load_tokenizer(given.tokenizer)
    table = read_table(given.data, text_column=given.text_column)
    limit = limit_of(tokenizer, given.max_length)
    tokenize = Tokenizing(tokenizer, limit=limit, too_long="truncate")
    rows = tokenize(table, given.text_column, given.text_pair_column)["input_ids"]
    if not rows:
        raise ConfigurationError(f"{given.data} has no rows, so there is nothing to plan for.")
    lengths = [len(ids) for ids in rows]
    return lengths, len(tokenizer.model_input_names), limit, tokenize.num_cut


def _load_tokenizer(path: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "lightning-gaudi plan needs Transformers, which is not installed: "
            'pip install "lightning-gaudi[transformers]"'
        ) from error
    if not Path(path).is_dir():
        raise ConfigurationError(
            f"there is no folder {Path(path).absolute()} with a tokenizer. Save one there with "
            "tokenizer.save_pretrained(...)."
        )
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} holds no tokenizer that Transformers can load: {error}"
        ) from error


def _print_lengths(
    console: Console, data: str, lengths: Sequence[int], num_cut: int, limit: int | None
) -> None:
    ordered = sorted(lengths)
    middle, high = ordered[len(ordered) // 2], ordered[(len(ordered) * 95) // 100]
    cut = f"; {num_cut} cut to {limit}" if num_cut else ""
    console.print(
        f"{len(lengths)} texts in {data}: {ordered[0]} to {ordered[-1]} tokens, half of them up to "
        f"{middle}, 95 % up to {high}{cut}.",
        soft_wrap=True,
    )


def _table(forecasts: Sequence[Forecast], unbucketed: Forecast, chosen: Forecast | None) -> Table:
    table = Table(title="Buckets")
    for name in ("buckets", "captures", "padding", "batches", "inputs"):
        table.add_column(name, justify="right")
    table.add_column("sizes", no_wrap=True, overflow="ellipsis")  # all of them are in --json
    table.add_row("none", *_cells(unbucketed), "each batch padded to its longest text", style="dim")
    for forecast in forecasts:
        sizes = " ".join(map(str, forecast.buckets))
        is_chosen = forecast is chosen
        table.add_row(
            f"{'> ' if is_chosen else ''}{len(forecast.buckets)}",
            *_cells(forecast),
            sizes,
            style="bold green" if is_chosen else None,
        )
    return table


def _cells(forecast: Forecast) -> tuple[str, str, str, str]:
    return (
        str(forecast.captures),
        f"{100 * forecast.padding_fraction:.1f} %",
        str(forecast.steps),
        f"{forecast.input_bytes / 2**20:.2f} MiB",
    )


def _print_advice(
    console: Console,
    forecasts: Sequence[Forecast],
    chosen: Forecast | None,
    given: argparse.Namespace,
) -> None:
    if chosen is None:
        most = forecasts[-1]
        console.print(
            f"No {len(most.buckets)} buckets pad at most {100 * given.max_padding:g} %: the best "
            f"pad {100 * most.padding_fraction:.1f} %. Cut long texts (--max-length), or allow "
            "more (--max-padding, --max-buckets).",
            soft_wrap=True,
        )
        return
    console.print(
        f"Use {len(chosen.buckets)} buckets, the fewest that pad at most "
        f"{100 * given.max_padding:g} %. For TextDataModule, or BucketBatchSampler and "
        "BucketCollator:",
        soft_wrap=True,
    )
    console.print(f"    buckets: {chosen.buckets}", soft_wrap=True, highlight=False)
    console.print(f"    batch_size: {given.batch_size}", highlight=False)
    if chosen.captures > 16:
        console.print(f"and HPUGraphCallback(max_graphs={chosen.captures}), which keeps 16 else.")


def _write_json(
    path: Path, forecasts: Sequence[Forecast], unbucketed: Forecast, chosen: Forecast | None
) -> None:
    document = {
        "unbucketed": asdict(unbucketed),
        "forecasts": [asdict(forecast) for forecast in forecasts],
        "recommended": None if chosen is None else len(chosen.buckets),
    }
    write_whole(path, json.dumps(document, indent=2).encode())


def _write_plot(
    path: Path,
    lengths: Sequence[int],
    forecasts: Sequence[Forecast],
    unbucketed: Forecast,
    chosen: Forecast | None,
    given: argparse.Namespace,
) -> None:
    """Draw padding by number of buckets, and the lengths with the chosen buckets."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    costs, histogram = figure.subplots(1, 2)
    numbers = [len(f.buckets) for f in forecasts]
    costs.plot(numbers, [100 * f.padding_fraction for f in forecasts], "o-", markersize=3)
    memory = costs.twinx()
    memory.plot(numbers, [f.input_bytes / 2**20 for f in forecasts], color="tab:orange")
    memory.set_ylabel("inputs of all graphs, MiB", color="tab:orange")
    memory.set_ylim(0, None)
    costs.axhline(100 * given.max_padding, color="tab:gray", linestyle=":", linewidth=1)
    costs.set(
        xlabel="buckets = captures of each target",
        ylabel="padding, % of tokens (blue)",
        title=f"without buckets: {unbucketed.captures} captures, "
        f"{100 * unbucketed.padding_fraction:.0f} % padding",
        ylim=(0, None),
    )
    histogram.hist(lengths, bins=min(60, max(lengths)), color="tab:blue", alpha=0.7)
    histogram.set(xlabel="tokens", ylabel="texts", title="text lengths")
    if chosen is not None:
        count = len(chosen.buckets)
        costs.plot(count, 100 * chosen.padding_fraction, "o", color="tab:green", markersize=9)
        costs.annotate(
            f"{count} buckets, {100 * chosen.padding_fraction:.1f} %",
            (count, 100 * chosen.padding_fraction),
            xytext=(10, 12),
            textcoords="offset points",
        )
        for size in chosen.buckets:
            histogram.axvline(size, color="tab:green", linewidth=1)
        histogram.set_title("text lengths, and the recommended buckets")
    write_whole(path, _png(figure))


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
