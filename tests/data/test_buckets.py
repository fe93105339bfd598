"""Chosen buckets need the least padding of all choices, and wrong lengths are named."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gaudi.data import choose_buckets
from lightning_gaudi.data.buckets import (
    bucket_numbers,
    bucket_of,
    padded_tokens,
    padding_fraction,
    plan_buckets,
)
from lightning_gaudi.errors import ConfigurationError

LENGTHS = st.lists(st.integers(0, 30), min_size=1, max_size=12)


def least_padding(lengths: list[int], num_buckets: int, multiple_of: int) -> int:
    """The padding of the best of all choices, each tried."""
    sizes = sorted({-(-max(n, 1) // multiple_of) * multiple_of for n in lengths})
    choices = combinations(sizes[:-1], min(num_buckets, len(sizes)) - 1)
    return min(
        sum(min(b for b in (*choice, sizes[-1]) if b >= n) - n for n in lengths)
        for choice in choices
    )


@given(LENGTHS, st.integers(1, 6), st.sampled_from([1, 2, 8]))
@settings(deadline=None)  # the machine may be busy
def test_no_choice_needs_less_padding(lengths, num_buckets, multiple_of):
    plans = plan_buckets(lengths, num_buckets, multiple_of=multiple_of)
    for number, plan in enumerate(plans, start=1):
        assert plan.padded_tokens == least_padding(lengths, number, multiple_of)
        assert plan.padded_tokens == padded_tokens(lengths, plan.buckets)
        assert plan.tokens == sum(lengths)
        assert plan.padding_fraction == padding_fraction(lengths, plan.buckets)
        assert plan.buckets == sorted(set(plan.buckets))
        assert len(plan.buckets) == number
        assert all(size % multiple_of == 0 for size in plan.buckets)
    distinct = {-(-max(n, 1) // multiple_of) for n in lengths}
    assert len(plans) == min(num_buckets, len(distinct))
    chosen = choose_buckets(lengths, num_buckets, multiple_of=multiple_of)
    assert chosen == plans[-1].buckets
    assert chosen[-1] == -(-max(*lengths, 1) // multiple_of) * multiple_of


def test_lengths_by_hand():
    lengths = [5] * 3 + [6] + [50] + [100] * 10
    assert choose_buckets(lengths, 2) == [6, 100]
    assert choose_buckets(lengths, 3) == [6, 50, 100]
    assert padded_tokens(lengths, [6, 50, 100]) == 3
    assert padding_fraction([1, 3], [4]) == 0.5
    assert padding_fraction([4], [4]) == 0.0


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_lengths_of_any_kind(kind):
    assert choose_buckets(kind([3, 9, 4]), 2) == [4, 9]
    assert bucket_numbers(kind([3, 9, 4]), [4, 9]).tolist() == [0, 1, 0]


def test_bucket_of():
    assert [bucket_of(n, [16, 8]) for n in (0, 1, 8, 9, 16)] == [8, 8, 8, 16, 16]
    with pytest.raises(ConfigurationError, match=r"row 0 has 17 tokens, the buckets are \[8, 16\]"):
        bucket_of(17, [8, 16])


def test_a_row_beyond_the_largest_bucket():
    with pytest.raises(ConfigurationError, match=r"2 of 3 rows .* row 1 has 9 tokens.*truncate"):
        padded_tokens([4, 9, 10], [8])


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        ([], "there are no lengths"),
        ([3, -1], "row 1 has -1"),
        ([1.5, 2.0], r"whole numbers .* float64"),
        ([True, False], r"whole numbers .* bool"),
        ([[1, 2]], r"shape \[1, 2\]"),
        (["a"], "whole numbers"),
    ],
    ids=["none", "negative", "fractions", "truth", "nested", "words"],
)
def test_wrong_lengths(lengths, text):
    with pytest.raises(ConfigurationError, match=text):
        choose_buckets(lengths, 4)


@pytest.mark.parametrize("number", [0, -1, 1.0, True])
def test_wrong_numbers(number):
    with pytest.raises(ConfigurationError, match=f"num_buckets must be .* it is {number!r}"):
        choose_buckets([1], number)
    with pytest.raises(ConfigurationError, match=f"multiple_of must be .* it is {number!r}"):
        choose_buckets([1], 1, multiple_of=number)


@pytest.mark.parametrize("buckets", [[], [0], [8, -8], [8.0], [8, True]], ids=str)
def test_wrong_buckets(buckets):
    with pytest.raises(ConfigurationError, match=r"buckets must be one or more whole numbers"):
        bucket_of(1, buckets)
