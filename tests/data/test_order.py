"""Rows come back once and in order, whatever kind of result they were part of."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gaudi.data import BucketBatchSampler, choose_buckets, in_data_order
from lightning_gaudi.data.batching import Filler
from lightning_gaudi.data.order import split_rows
from lightning_gaudi.errors import ConfigurationError


@given(
    st.lists(st.integers(0, 20), max_size=40),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 3),
    st.sampled_from(["filler", "repeat", None]),
)
@settings(deadline=None)  # the machine may be busy
def test_every_row_once_and_in_order(lengths, num_buckets, batch_size, world_size, fill):
    buckets = choose_buckets(lengths, num_buckets) if lengths else [8]
    batches, results = [], []
    for rank in range(world_size):
        of_rank = list(
            BucketBatchSampler(
                lengths, buckets, batch_size, fill=fill, rank=rank, world_size=world_size
            )
        )
        batches += of_rank
        results += [{"row": torch.tensor(b), "text": [f"{int(i)}" for i in b]} for b in of_rank]
    rows = in_data_order(results, batches)
    assert [int(row["row"]) for row in rows] == list(range(len(lengths)))
    assert [row["text"] for row in rows] == [str(i) for i in range(len(lengths))]


@dataclass
class Output:
    a: torch.Tensor
    b: list | None = None


Pair = namedtuple("Pair", "a b")
X = torch.arange(6).reshape(2, 3)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (X, [X[0], X[1]]),
        (X.numpy(), [X[0].numpy(), X[1].numpy()]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", "b"], ["a", "b"]),
        (("a", "b"), ["a", "b"]),
        ((X, X + 1), [(X[0], X[0] + 1), (X[1], X[1] + 1)]),
        ({"x": X, "y": {"z": ["a", "b"]}}, [{"x": X[i], "y": {"z": "ab"[i]}} for i in (0, 1)]),
        (Output(X), [Output(X[0]), Output(X[1])]),
        (Pair(X, None), [Pair(X[0], None), Pair(X[1], None)]),
        (None, [None, None]),
    ],
    ids=[
        "tensor", "array", "lists", "texts", "tuple", "parts", "nested",
        "dataclass", "namedtuple", "none",
    ],
)  # fmt: skip
def test_split_rows(result, expected):
    rows = split_rows(result, 2)
    assert [type(row) for row in rows] == [type(row) for row in expected]
    assert str(rows) == str(expected)


def test_a_model_output_stays_one():
    from transformers.modeling_outputs import BaseModelOutput

    rows = split_rows(BaseModelOutput(last_hidden_state=X, hidden_states=(X, X + 1)), 2)
    assert all(isinstance(row, BaseModelOutput) for row in rows)
    assert torch.equal(rows[1].last_hidden_state, X[1])
    assert torch.equal(rows[1].hidden_states[1], X[1] + 1)
    assert rows[1].attentions is None


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (torch.tensor(0.5), r"has 2 rows, and its result is of shape \[\]"),
        ({"x": X, "loss": 0.5}, r"its result\['loss'\] is a float"),
        ({"x": [np.zeros(3)]}, r"its result\['x'\] is a list, of length 1"),
        # A list has a value for each row. Were this one split, the same with two tensors would not.
        ([X, X, X], r"its result is a list, of length 3.*alone or in a dict or tuple"),
        ((X, torch.zeros(3)), r"its result\[1\] is of shape \[3\]"),
        (["a"], "its result is a list, of length 1"),
        ("ab", "its result is a str"),
    ],
)
def test_results_without_rows(result, text):
    with pytest.raises(ConfigurationError, match=text):
        in_data_order([result], [[0, 1]])


def test_other_batches():
    with pytest.raises(
        ConfigurationError, match=r"predictions for 1 batches, and row numbers for 2"
    ):
        in_data_order([X], [[0, 1], [2, 3]])


def test_repeats_and_fillers_are_dropped_and_rows_may_lack():
    results = [["a", "b"], ["c", "d"], ["e", "f"]]
    batches = [[5, Filler(5)], [2, 0], [5, Filler(9)]]
    assert in_data_order(results, batches) == ["d", "c", "a"]


def test_several_predictions_of_each_row():
    batches = [[1, 0], [2, Filler(2)]]
    columns = [{"n": torch.arange(6), "t": list("abcdef")}, {"n": torch.arange(6), "t": [None] * 6}]
    rows = in_data_order(columns, batches, predictions_per_row=3)
    assert [[int(n) for n in row["n"]] for row in rows] == [[3, 4, 5], [0, 1, 2], [0, 1, 2]]
    assert [row["t"] for row in rows] == [list("def"), list("abc"), [None] * 3]
    plain = in_data_order([torch.arange(6), torch.arange(6)], batches, predictions_per_row=3)
    assert [[int(n) for n in row] for row in plain] == [[3, 4, 5], [0, 1, 2], [0, 1, 2]]
    with pytest.raises(ConfigurationError, match=r"has 6 rows, and its result\['n'\] is of shape"):
        in_data_order([{"n": torch.arange(4)}], batches[:1], predictions_per_row=3)
