"""What a number of buckets costs, before anything runs: captures, padding, steps, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightning_gaudi.data.batching import count_steps
from lightning_gaudi.data.buckets import (
    Lengths,
    bucket_numbers,
    checked_lengths,
    plan_buckets,
)
from lightning_gaudi.errors import ConfigurationError

DEFAULT_MAX_PADDING = 0.12
"""The part of all tokens that may be padding in what `recommend` looks for."""

_INT64_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one way of making batches costs in an epoch on one card.

    Attributes:
        buckets: Bucket sizes in tokens, ascending; empty where batches are padded to their longest
            row.
        captures: Graphs that each target of `HPUGraphCallback` captures: the shapes of batches.
            A partial batch counts with the whole ones, since the callback pads it.
        padding_fraction: Which part of all tokens is padding, 0 to 1; rows only, without those that
            fill a partial batch.
        steps: Batches.
        input_bytes: Bytes of the static inputs of all graphs of a target, int64.
    """

    buckets: list[int]
    captures: int
    padding_fraction: float
    steps: int
    input_bytes: int


def forecast_buckets(
    lengths: Lengths,
    batch_size: int,
    max_buckets: int = 32,
    *,
    multiple_of: int = 1,
    limit: int | None = None,
    num_fields: int = 2,
) -> list[Forecast]:
    """Forecast the best buckets for every number of them.

    Args:
        lengths: Tokens in each row.
        batch_size: Rows in a batch.
        max_buckets: The most buckets to consider.
        multiple_of: What each bucket must be a multiple of.
        limit: The largest bucket that rounding up to such a multiple may give.
        num_fields: Tensors in a batch with a number for each token: ``input_ids``,
            ``attention_mask`` and so on.

    Returns:
        One forecast for 1 bucket, one for 2 and so on. The list ends early where the rows have
        fewer distinct lengths.

    Raises:
        ConfigurationError: There are no lengths, or an argument is not a whole number above 0.
    """
    _check_counts(batch_size=batch_size, num_fields=num_fields)
    forecasts = []
    for plan in plan_buckets(lengths, max_buckets, multiple_of=multiple_of, limit=limit):
        numbers = bucket_numbers(lengths, plan.buckets)
        rows = np.bincount(numbers, minlength=len(plan.buckets)).tolist()
        sizes = [batch_size] * len(plan.buckets)
        shapes = [(min(n, batch_size), b) for n, b in zip(rows, plan.buckets, strict=True) if n]
        forecasts.append(
            Forecast(
                buckets=plan.buckets,
                captures=len(shapes),
                padding_fraction=plan.padding_fraction,
                steps=count_steps(rows, sizes, 1, drop_last=False),
                input_bytes=_bytes(shapes, num_fields),
            )
        )
    return forecasts


def forecast_unbucketed(lengths: Lengths, batch_size: int, *, num_fields: int = 2) -> Forecast:
    """Forecast batches in the data's order, each padded to its longest row.

    Args:
        lengths: Tokens in each row.
        batch_size: Rows in a batch.
        num_fields: As in `forecast_buckets`.

    Raises:
        ConfigurationError: There are no lengths, or an argument is not a whole number above 0.
    """
    _check_counts(batch_size=batch_size, num_fields=num_fields)
    values = checked_lengths(lengths)
    if not len(values):
        raise ConfigurationError(
            "there is nothing to forecast: there are no lengths. Give the length in tokens of at "
            "least one row."
        )
    batches = [values[start : start + batch_size] for start in range(0, len(values), batch_size)]
    longest = [max(int(batch.max()), 1) for batch in batches]
    rows_of: dict[int, int] = {}
    for batch, length in zip(batches, longest, strict=True):
        rows_of[length] = max(rows_of.get(length, 0), len(batch))
    computed = sum(len(batch) * n for batch, n in zip(batches, longest, strict=True))
    return Forecast(
        buckets=[],
        captures=len(rows_of),
        padding_fraction=1 - int(values.sum()) / computed,
        steps=len(batches),
        input_bytes=_bytes([(rows, length) for length, rows in rows_of.items()], num_fields),
    )


def recommend(
    forecasts: Sequence[Forecast], max_padding: float = DEFAULT_MAX_PADDING
) -> Forecast | None:
    """Choose the fewest buckets whose padding is at most ``max_padding``.

    Args:
        forecasts: From `forecast_buckets`.
        max_padding: The part of all tokens that may be padding, 0 to 1.

    Returns:
        The forecast; None where none of them pads so little.

    Raises:
        ConfigurationError: ``max_padding`` is not from 0 to 1.
    """
    if not 0 <= max_padding <= 1:
        raise ConfigurationError(
            f"max_padding must be a fraction from 0 to 1, but it is {max_padding}. Give for "
            f"example {DEFAULT_MAX_PADDING} for 12 %."
        )
    return next((f for f in forecasts if f.padding_fraction <= max_padding), None)


def _bytes(shapes: Sequence[tuple[int, int]], num_fields: int) -> int:
    return sum(rows * length for rows, length in shapes) * num_fields * _INT64_BYTES


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigurationError(
                f"{name} must be a whole number above 0, but it is {count!r}. Give for example 32."
            )
