"""Bucket sizes with the least padding, and what a choice of buckets costs.

A row of n tokens is padded to the smallest bucket that holds it. Some best choice of buckets uses
lengths of the data only, so the choice is over the distinct lengths s_1 < ... < s_m with C_j rows
up to s_j. With D_k(j) the least number of tokens that k buckets take for the rows up to s_j:

    D_k(j) = s_j * C_j + min over i < j of (D_{k-1}(i) - s_j * C_i)

The minimum is that of straight lines in s_j, whose slopes fall with i while the s_j rise. So the
lines worth keeping form a queue that is read from one end, and a layer k takes m steps instead of
m * m. All numbers are whole, so the result is exact.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_gaudi.errors import ConfigurationError

Lengths = Sequence[int] | npt.NDArray[Any] | Tensor
"""Row lengths in tokens: whole numbers, 0 or more."""


@dataclass(frozen=True, kw_only=True)
class BucketPlan:
    """The best buckets of some number, and what they cost.

    Attributes:
        buckets: Bucket sizes in tokens, ascending.
        tokens: Tokens of the rows themselves.
        padded_tokens: Tokens that padding adds.
    """

    buckets: list[int]
    tokens: int
    padded_tokens: int

    @property
    def padding_fraction(self) -> float:
        """Which part of what the device computes on is padding, from 0 to 1."""
        return _fraction(self.padded_tokens, self.tokens)


def choose_buckets(lengths: Lengths, num_buckets: int, *, multiple_of: int = 1) -> list[int]:
    """Choose at most ``num_buckets`` bucket sizes so that the rows need the least padding.

    Args:
        lengths: Tokens in each row.
        num_buckets: The most buckets to choose. Fewer come back where fewer waste nothing.
        multiple_of: What each size must be a multiple of. Padding is counted with such sizes.

    Returns:
        Bucket sizes in tokens, ascending. The last is the longest length, or the next multiple;
        rows of no tokens count as rows of one.

    Raises:
        ConfigurationError: There are no lengths, a length is negative or no whole number, or
            ``num_buckets`` or ``multiple_of`` is below 1.
    """
    return plan_buckets(lengths, num_buckets, multiple_of=multiple_of)[-1].buckets


def plan_buckets(
    lengths: Lengths, max_buckets: int, *, multiple_of: int = 1, limit: int | None = None
) -> list[BucketPlan]:
    """Give the best buckets for every number of them from 1 to ``max_buckets``, in one go.

    Args:
        lengths: Tokens in each row.
        max_buckets: The most buckets to consider.
        multiple_of: What each size must be a multiple of.
        limit: The largest size that rounding up to such a multiple may give, as where a model has
            no more positions; None for no limit.

    Returns:
        One plan for 1 bucket, one for 2 and so on. The list ends early where the rows have fewer
        distinct sizes, since more buckets would change nothing.

    Raises:
        ConfigurationError: As `choose_buckets`.
    """
    _check_count("num_buckets", max_buckets)
    _check_count("multiple_of", multiple_of)
    values = checked_lengths(lengths)
    if not len(values):
        raise ConfigurationError(
            "buckets cannot be chosen: there are no lengths. Give the length in tokens of at "
            "least one row."
        )
    rounded = -(-np.maximum(values, 1) // multiple_of) * multiple_of
    if limit is not None:
        rounded = np.minimum(rounded, max(limit, int(values.max())))
    distinct, counts = np.unique(rounded, return_counts=True)
    sizes: list[int] = distinct.tolist()
    up_to: list[int] = np.cumsum(counts).tolist()
    tokens = int(values.sum())
    # Layer 1: one bucket for all rows up to s_j.
    least = [size * rows for size, rows in zip(sizes, up_to, strict=True)]
    cuts: list[list[int]] = []
    plans = [BucketPlan(buckets=[sizes[-1]], tokens=tokens, padded_tokens=least[-1] - tokens)]
    for _ in range(1, min(max_buckets, len(sizes))):
        least, cut = _with_one_more(sizes, up_to, least)
        cuts.append(cut)
        plans.append(
            BucketPlan(buckets=_trace(sizes, cuts), tokens=tokens, padded_tokens=least[-1] - tokens)
        )
    return plans


def bucket_of(length: int, buckets: Sequence[int]) -> int:
    """Return the smallest bucket that holds a row of ``length`` tokens.

    Raises:
        ConfigurationError: The row is longer than the largest bucket, or the buckets are not
            positive whole numbers.
    """
    return checked_buckets(buckets)[int(bucket_numbers([length], buckets)[0])]


def bucket_numbers(lengths: Lengths, buckets: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return for each row the position of its bucket in the ascending list of buckets.

    Raises:
        ConfigurationError: As `bucket_of`; the message names the first row that is too long.
    """
    sizes = checked_buckets(buckets)
    values = checked_lengths(lengths)
    too_long = np.flatnonzero(values > sizes[-1])
    if len(too_long):
        row = int(too_long[0])
        raise ConfigurationError(
            f"{len(too_long)} of {len(values)} rows are longer than the largest bucket: row {row} "
            f"has {int(values[row])} tokens, the buckets are {sizes}. Add a larger bucket, or "
            "truncate the rows (too_long='truncate')."
        )
    return np.searchsorted(sizes, values).astype(np.int64)


def padded_tokens(lengths: Lengths, buckets: Sequence[int]) -> int:
    """Count the tokens that padding each row to its bucket adds.

    Raises:
        ConfigurationError: As `bucket_of`.
    """
    numbers = bucket_numbers(lengths, buckets)
    sizes = np.asarray(checked_buckets(buckets), dtype=np.int64)
    return int(sizes[numbers].sum() - checked_lengths(lengths).sum())


def padding_fraction(lengths: Lengths, buckets: Sequence[int]) -> float:
    """Return which part of all tokens, padding included, is padding: from 0 to 1.

    Raises:
        ConfigurationError: As `bucket_of`.
    """
    return _fraction(padded_tokens(lengths, buckets), int(checked_lengths(lengths).sum()))


def checked_lengths(lengths: Lengths) -> npt.NDArray[np.int64]:
    """Return lengths as an int64 array of one dimension.

    Raises:
        ConfigurationError: They are not whole numbers of 0 or more, in one dimension.
    """
    values = np.asarray(lengths.cpu() if isinstance(lengths, Tensor) else lengths)
    if values.ndim == 1 and not len(values):
        return np.zeros(0, dtype=np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ConfigurationError(
            "lengths must be whole numbers in one dimension, one for each row, but they are of "
            f"shape {list(values.shape)} and type {values.dtype}. Give len(row['input_ids']) of "
            "each row."
        )
    if values.min() < 0:
        row = int(values.argmin())
        raise ConfigurationError(
            f"lengths must be 0 or more, but row {row} has {int(values[row])}. Give "
            "len(row['input_ids']) of each row."
        )
    return values.astype(np.int64)


def checked_buckets(buckets: Sequence[int]) -> list[int]:
    """Return bucket sizes as ascending ints without repeats.

    Raises:
        ConfigurationError: There are none, or one is no whole number above 0.
    """
    given = list(buckets) if isinstance(buckets, Iterable) else []
    sizes = sorted({int(size) for size in given if is_count(size)})
    if not sizes or not all(map(is_count, given)):
        raise ConfigurationError(
            f"buckets must be one or more whole numbers above 0, but they are {buckets}. "
            "Give sizes in tokens such as [32, 64, 128], or choose_buckets(lengths, 8)."
        )
    return sizes


def _with_one_more(
    sizes: list[int], up_to: list[int], least: list[int]
) -> tuple[list[int], list[int]]:
    """Add a layer: the least tokens with one bucket more, and where its last bucket begins.

    ``least[j]`` and ``cut[j]`` are about the rows up to ``sizes[j]``; the last bucket takes those
    above ``sizes[cut[j]]``, or all of them where the cut is -1.
    """
    lines: deque[tuple[int, int, int]] = deque([(0, 0, -1)])  # slope, intercept, i
    found: list[int] = []
    cut: list[int] = []
    for j, (size, rows) in enumerate(zip(sizes, up_to, strict=True)):
        # Sizes only rise, so a line that another has overtaken is never the lowest again.
        while len(lines) > 1 and _at(lines[1], size) <= _at(lines[0], size):
            lines.popleft()
        found.append(size * rows + _at(lines[0], size))
        cut.append(lines[0][2])
        new = (-rows, least[j], j)
        while len(lines) > 1 and _is_never_lowest(lines[-2], lines[-1], new):
            lines.pop()
        lines.append(new)
    return found, cut


def _at(line: tuple[int, int, int], x: int) -> int:
    return line[0] * x + line[1]


def _is_never_lowest(
    a: tuple[int, int, int], b: tuple[int, int, int], c: tuple[int, int, int]
) -> bool:
    """Whether of three lines of falling slopes the middle one is nowhere below both others."""
    return (c[1] - a[1]) * (a[0] - b[0]) <= (b[1] - a[1]) * (a[0] - c[0])


def _trace(sizes: list[int], cuts: list[list[int]]) -> list[int]:
    """Follow the cuts back from the largest size."""
    buckets = [sizes[-1]]
    j = len(sizes) - 1
    for cut in reversed(cuts):
        j = cut[j]
        if j < 0:
            break
        buckets.append(sizes[j])
    return buckets[::-1]


def _fraction(padding: int, tokens: int) -> float:
    return padding / (tokens + padding) if tokens + padding else 0.0


def is_count(value: object) -> bool:
    """Whether a value is a whole number above 0."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0


def _check_count(name: str, value: int) -> None:
    if not is_count(value):
        raise ConfigurationError(
            f"{name} must be a whole number above 0, but it is {value!r}. Give for example 8."
        )
