"""A real model over real texts of every length, with stock masks and ragged batches."""

from __future__ import annotations

import pytest
from graphs.minilm import BUCKETS, compare


@pytest.mark.slow
def test_docstrings_equal_op_by_op_row_for_row():
    report = compare(120)
    assert report.stats.captures <= len(BUCKETS)
    assert report.stats.eager_calls == 0
    assert report.stats.padded_calls >= 3
    assert report.rows_padded >= 6
    assert report.rows_equal >= 120 - report.rows_padded
    assert report.largest_difference < 1e-6
