"""``out=``: on the device, with PyTorch's helpers beside it, and with its memory counted."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.nn import functional

from lightning_gaudi.emulator.tensor import block_of

MATRIX = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 2.0]])


def empty(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(0, dtype=dtype, device="hpu")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(256, dtype=torch.float32, device="hpu"),
        lambda: torch.linspace(0, 1, 256, device="hpu"),
        lambda: torch.eye(16, device="hpu"),
        lambda: torch.randperm(128, device="hpu"),
        lambda: torch.add(torch.ones(256, device="hpu"), 1, out=empty()),
        lambda: torch.cat([torch.ones(128, device="hpu")] * 2, out=empty()),
        lambda: torch.sort(torch.ones(256, device="hpu"), out=(empty(), empty(torch.int64)))[0],
        lambda: torch.nonzero(torch.ones(128, device="hpu"), out=empty(torch.int64)),
    ],
)
def test_memory_that_an_op_gives_to_its_out_is_counted(make):
    made = make()
    assert made.untyped_storage().nbytes() == 1024
    assert block_of(made).nbytes == 1024


FACTORIES = {
    "zeros": lambda **k: torch.zeros(3, **k),
    "ones": lambda **k: torch.ones(3, **k),
    "full": lambda **k: torch.full((3,), 2.0, **k),
    "arange": lambda **k: torch.arange(3.0, **k),
    "linspace": lambda **k: torch.linspace(0, 1, 3, **k),
    "logspace": lambda **k: torch.logspace(0, 1, 3, **k),
    "eye": lambda **k: torch.eye(3, **k),
    "rand": lambda **k: torch.rand(3, **k),
    "randn": lambda **k: torch.randn(3, **k),
    "normal": lambda **k: torch.normal(0.0, 1.0, (3,), **k),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_a_factory_fills_a_tensor_on_the_device(name):
    torch.manual_seed(1)
    expected = FACTORIES[name]()
    for options in ({}, {"device": "hpu"}, {"device": torch.device("hpu", 0)}):
        out = empty()
        torch.manual_seed(1)
        assert FACTORIES[name](out=out, **options) is out
        assert torch.equal(out.cpu(), expected)
    with pytest.raises(RuntimeError, match="device cpu does not match the device of the out"):
        FACTORIES[name](out=empty(), device="cpu")
    with pytest.raises(RuntimeError, match="device hpu:1 does not exist"):
        FACTORIES[name](out=empty(), device="hpu:1")


# C++ makes the results that the user did not ask for itself, "on the same device".
HELPERS = {
    "logsigmoid": (functional.logsigmoid, [torch.float32]),
    "msort": (torch.msort, [torch.float32]),
    "cholesky": (torch.linalg.cholesky, [torch.float32]),
    "inv": (torch.linalg.inv, [torch.float32]),
    "det": (torch.linalg.det, [torch.float32]),
    "slogdet": (torch.linalg.slogdet, [torch.float32, torch.float32]),
    "lu_factor": (torch.linalg.lu_factor, [torch.float32, torch.int32]),
    "ldl_factor": (torch.linalg.ldl_factor, [torch.float32, torch.int32]),
    "matrix_rank": (torch.linalg.matrix_rank, [torch.int64]),
}


@pytest.mark.parametrize("name", HELPERS)
def test_results_that_nobody_asked_for_are_no_second_device(name):
    function, dtypes = HELPERS[name]
    expected = function(MATRIX)
    outs = [empty(dtype) for dtype in dtypes]
    if len(outs) == 1:
        assert function(MATRIX.to("hpu"), out=outs[0]) is outs[0]
        expected = (expected,)
    else:
        function(MATRIX.to("hpu"), out=tuple(outs))
    for a, b in zip(expected, outs, strict=True):
        assert torch.equal(b.cpu(), a)


@pytest.mark.parametrize(
    "function",
    [
        lambda: torch.msort(MATRIX.to("hpu"), out=torch.empty(0)),
        lambda: torch.linalg.inv(MATRIX.to("hpu"), out=torch.empty(0)),
        lambda: torch.sort(MATRIX.to("hpu"), out=(empty(), torch.empty(0, dtype=torch.int64))),
        lambda: torch.linalg.det(MATRIX, out=empty()),
    ],
)
def test_an_out_of_the_users_on_the_other_device_raises(function):
    with pytest.raises(RuntimeError, match="at least two devices, hpu:0 and cpu!"):
        function()


@pytest.mark.parametrize("name", ["zeros", "zeros_like", "tensor", "arange"])
def test_functions_that_were_replaced_can_be_pickled(name):
    function = getattr(torch, name)
    assert pickle.loads(pickle.dumps(function)) is function
