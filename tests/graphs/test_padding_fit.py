"""What padding decides by: which dimension is the batch, which graph fits, what is a difference."""

from __future__ import annotations

import pytest
import torch

from lightning_gaudi.graphs import padding
from lightning_gaudi.graphs.padded_call import KnownGraph
from lightning_gaudi.graphs.padding import Fit, differs, find_fit


def known(*shapes, outputs=((8, 3),), writes=False, draws=False, dtype=torch.float32):
    return KnownGraph(
        tuple(map(torch.Size, shapes)),
        (dtype,) * len(shapes),
        writes,
        draws,
        tuple(map(torch.Size, outputs)),
    )


FITS = [
    ([(5, 4)], known((8, 4)), Fit(5, 8, (0,))),
    ([(5, 4), (4,), ()], known((8, 4), (4,), ()), Fit(5, 8, (0,))),
    ([(5, 4), (5,)], known((8, 4), (8,)), Fit(5, 8, (0, 1))),
    ([(5, 4), (8, 4)], known((8, 4), (8, 4)), None),  # is the second as long by chance?
    ([(5, 4), (5, 4)], known((8, 4), (5, 4)), None),
    ([(5, 4), (6, 4)], known((8, 4), (8, 4)), None),  # two batch sizes
    ([(5, 4), (2, 4)], known((8, 4), (3, 4)), None),
    ([(9, 4)], known((8, 4)), None),
    ([(0, 4)], known((8, 4)), None),
    ([(8, 3)], known((8, 4)), None),  # not the batch differs
    ([(5, 3)], known((8, 4)), None),
    ([(5,)], known((8, 4)), None),
    ([(5, 4)], known((8, 4), dtype=torch.float64), None),
    ([(5, 4)], known((8, 4), writes=True), None),
    ([(5, 4)], known((8, 4), draws=True), None),
    ([(5, 4)], known((8, 4), outputs=[(8, 3), ()]), None),
    ([(5, 4)], known((8, 4), outputs=[(3, 8)]), None),
    ([(5, 4)], known((8, 4), outputs=[]), None),
    ([(5, 4)], known((8, 4), (8, 4)), None),
    ([()], known(()), None),
]


@pytest.mark.parametrize(("shapes", "graph", "expected"), FITS)
def test_what_is_the_batch(shapes, graph, expected):
    assert find_fit([torch.zeros(shape) for shape in shapes], [graph]) == expected


def test_tensors_that_share_memory_are_not_padded():
    x = torch.zeros(10, 4)
    assert find_fit([x[:5], x[5:]], [known((8, 4), (8, 4))]) is None


def test_the_smallest_fit():
    graphs = [known((size, 4), outputs=[(size,)]) for size in (16, 4, 8, 6)]
    assert find_fit([torch.zeros(5, 4)], graphs) == Fit(5, 6, (0,))


def test_differences():
    x = torch.tensor([1.0, float("nan"), float("inf"), 100.0])
    assert differs(x, x.clone()) is None
    assert differs(x, x + torch.tensor([5e-4, 0, 0, 0])) is None  # 1e-5 of 100
    assert "up to 5.0e-03" in str(differs(x, x + torch.tensor([5e-3, 0, 0, 0])))
    assert differs(x, torch.tensor([float("nan"), 1.0, float("inf"), 100.0])) is not None
    assert differs(x.bfloat16(), x.bfloat16() * 1.01) is None
    assert differs(x, x * 1.01) is not None
    assert differs(x, x * 1.01, torch.bfloat16) is None
    assert "whole numbers" in str(differs(torch.tensor([1, 2]), torch.tensor([1, 3])))
    assert "shape (2,)" in str(differs(torch.zeros(2), torch.zeros(3)))
    assert "float64" in str(differs(torch.zeros(2), torch.zeros(2, dtype=torch.float64)))
    assert "other parts" in str(differs((torch.zeros(2), 3), (torch.zeros(2), 4)))
    assert padding.TOLERANCES[torch.float32] == 1e-5
