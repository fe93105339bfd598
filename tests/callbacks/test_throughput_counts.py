"""Rows and tokens of batches, from their shapes alone; and how windows are timed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_gaudi import emulator
from lightning_gaudi.callbacks.rates.books import StageBooks, Work
from lightning_gaudi.callbacks.rates.counts import samples_in, tokens_in

X = torch.zeros(3, 5)
IDS = torch.zeros(2, 7, dtype=torch.int64)


@pytest.mark.parametrize(
    ("batch", "samples", "tokens"),
    [
        (X, 3, None),
        (torch.tensor(1.0), None, None),
        ([X, IDS], 3, None),
        ((IDS, X), 2, None),
        ({"labels": X, "input_ids": IDS}, 2, 14),
        ({"scale": torch.tensor(1.0), "x": X}, 3, None),
        ({"prompt": ["a", "b", "c", "d"], "index": [0, 1, 2, 3]}, 4, None),
        (["a", "b"], 2, None),
        ([{"index": 0}, {"index": 1}, {"index": 2}], 3, None),
        (({"x": X}, "name"), 3, None),
        ([["a", "b", "c"], ["d", "e", "f"]], 3, None),
        ("text", None, None),
        (None, None, None),
        ([], None, None),
    ],
    ids=lambda value: "",
)
def test_counts(batch: Any, samples: int | None, tokens: int | None) -> None:
    assert (samples_in(batch), tokens_in(batch)) == (samples, tokens)


def test_nothing_is_read_from_the_device() -> None:
    batch = {"input_ids": IDS.to("hpu"), "attention_mask": IDS.to("hpu")}
    with emulator.record() as events:
        assert (samples_in(batch), tokens_in(batch)) == (2, 14)
    assert events == []


def test_time_is_that_of_counted_steps() -> None:
    now = 0.0
    books = StageBooks(1, lambda: now)
    books.run()
    now = 50
    books.step(4, 8)  # warm-up
    now = 52
    books.step(4, 8)
    books.pause()
    now = 90
    books.run()
    now = 91
    books.step(2, None)
    assert books.end_window() == Work(batches=2, samples=6, tokens=None, seconds=3)
    now = 93
    books.step(4, 8)
    assert books.end_window() == Work(batches=1, samples=4, tokens=8, seconds=2)
    assert books.total == Work(batches=3, samples=10, tokens=None, seconds=5)
    assert books.total.rates() == {"batches_per_second": 0.6, "samples_per_second": 2.0}
    assert (books.num_steps, Work().rates()) == (4, {})
