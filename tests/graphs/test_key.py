"""What makes two calls the same graph."""

from __future__ import annotations

import pytest
import torch

from lightning_gaudi.graphs.key import key_of
from lightning_gaudi.graphs.structure import UnsupportedValueError


def key(*args, **kwargs):
    return key_of(args, kwargs)[0]


def hpu(*shape, **kwargs):
    return torch.zeros(*shape, device="hpu", **kwargs)


def test_values_do_not_matter():
    assert key(hpu(2, 3), flag=True) == key(hpu(2, 3) + 1, flag=True)


@pytest.mark.parametrize(
    "other",
    [
        lambda: key(hpu(3, 2)),
        lambda: key(hpu(2, 3, dtype=torch.bfloat16)),
        lambda: key(hpu(3, 2).t()),
        lambda: key(hpu(2, 6)[:, ::2]),
        lambda: key(x=hpu(2, 3)),
        lambda: key([hpu(2, 3)]),
        lambda: key(hpu(2, 3), None),
    ],
    ids=["shape", "dtype", "strides", "step", "keyword", "structure", "constant"],
)
def test_everything_else_matters(other):
    assert key(hpu(2, 3)) != other()


def test_the_same_tensor_twice_is_not_two_tensors():
    x = hpu(2)
    shared, inputs = key_of((x, x), {})
    assert shared != key(hpu(2), hpu(2))
    assert len(inputs) == 1


def test_autocast_and_default_dtype_matter():
    x = hpu(2)
    plain = key(x)
    with torch.autocast("hpu", dtype=torch.bfloat16):
        bfloat16 = key(x)
    with torch.autocast("hpu", dtype=torch.float16):
        float16 = key(x)
    torch.set_default_dtype(torch.float64)
    try:
        double = key(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len({plain, bfloat16, float16, double}) == 4
    assert key(x) == plain


def test_small_cpu_tensors_count_by_value():
    assert key(hpu(2), torch.tensor(3)) == key(hpu(2), torch.tensor(3))
    assert key(hpu(2), torch.tensor(3)) != key(hpu(2), torch.tensor(4))
    assert key(hpu(2), torch.tensor(3)) != key(hpu(2), torch.tensor(3.0))


def test_larger_cpu_tensors_are_refused():
    with pytest.raises(UnsupportedValueError):
        key(hpu(2), torch.zeros(2))
