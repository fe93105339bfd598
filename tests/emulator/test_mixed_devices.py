"""A tensor on the host and one on the device do not mix, however they meet."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

MESSAGE = r"on the same device, but found at least two devices, hpu:0 and cpu!"


def hpu(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, device="hpu")


NAMED = torch.ones(3)
MIXES = {
    "add": lambda: hpu(3) + NAMED,
    "add_temporary": lambda: hpu(3) + torch.ones(3),
    "add_reversed": lambda: torch.ones(3) + hpu(3),
    "add_in_place": lambda: hpu(3).add_(torch.ones(3)),
    "add_into_the_host": lambda: torch.ones(3).add_(hpu(3)),
    "mul": lambda: torch.ones(3) * hpu(3),
    "maximum": lambda: torch.maximum(torch.ones(3), hpu(3)),
    "masked_fill": lambda: torch.ones(3).masked_fill(hpu(3) > 0, 1.0),
    "masked_select": lambda: hpu(3).masked_select(torch.ones(3) > 0),
    "cat": lambda: torch.cat([hpu(3), torch.ones(3)]),
    "stack_named": lambda: torch.stack([NAMED, hpu(3)]),
    "where": lambda: torch.where(hpu(3) > 0, torch.ones(3), hpu(3)),
    "out": lambda: torch.add(hpu(3), 1, out=torch.empty(3)),
    "foreach": lambda: torch._foreach_add([hpu(3)], [torch.ones(3)]),
    "index_of_the_host": lambda: torch.ones(3)[torch.tensor([0], device="hpu")],
    "assigning_to_indices": lambda: hpu(3).__setitem__(torch.tensor([0, 1]), torch.ones(2)),
    "linear": lambda: nn.Linear(3, 3).to("hpu")(torch.ones(2, 3)),
    "linear_1d": lambda: nn.Linear(3, 3).to("hpu")(torch.ones(3)),
    "linear_3d": lambda: nn.Linear(3, 3).to("hpu")(torch.ones(2, 2, 3)),
    "linear_4d_of_a_view": lambda: nn.Linear(3, 3).to("hpu")(torch.ones(12).view(1, 2, 2, 3)),
    "linear_on_the_host": lambda: nn.Linear(3, 3)(hpu(2, 2, 3)),
    "conv2d": lambda: nn.Conv2d(1, 1, 3).to("hpu")(torch.ones(1, 1, 5, 5)),
    "embedding": lambda: nn.Embedding(3, 3).to("hpu")(torch.ones(3, dtype=torch.long)),
    "cross_entropy": lambda: functional.cross_entropy(hpu(3, 3), torch.ones(3, dtype=torch.long)),
    "lstm": lambda: nn.LSTM(2, 3).to("hpu")(torch.ones(4, 1, 2)),
    "batch_norm": lambda: nn.BatchNorm1d(3)(hpu(2, 3)),
    "layer_norm": lambda: nn.LayerNorm(3)(hpu(2, 3)),
    "attention": lambda: functional.scaled_dot_product_attention(
        hpu(1, 1, 2, 4), hpu(1, 1, 2, 4), torch.ones(1, 1, 2, 4)
    ),
    "attention_mask": lambda: functional.scaled_dot_product_attention(
        hpu(1, 1, 2, 4), hpu(1, 1, 2, 4), hpu(1, 1, 2, 4), torch.ones(2, 2)
    ),
    "matmul_4d": lambda: hpu(1, 2, 3, 3) @ torch.ones(1, 2, 3, 3),
    "einsum": lambda: torch.einsum("bij,bjk->bik", hpu(1, 2, 2), torch.ones(1, 2, 2)),
}


class PassesOn(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class LooksAtArguments(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        first = args[0] if args else None
        result = func(*args, **(kwargs or {}))
        del first
        return result


@pytest.mark.parametrize("name", MIXES)
def test_two_devices_raise(name):
    with pytest.raises(RuntimeError, match=MESSAGE):
        MIXES[name]()


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("mode", [PassesOn, LooksAtArguments])
def test_two_devices_raise_under_a_dispatch_mode(name, mode):
    with mode(), pytest.raises(RuntimeError, match=MESSAGE):
        MIXES[name]()


@pytest.mark.parametrize("name", ["linear_3d", "linear_1d", "cat", "attention_mask"])
def test_two_devices_raise_without_gradients(name):
    with torch.no_grad(), pytest.raises(RuntimeError, match=MESSAGE):
        MIXES[name]()
    with torch.inference_mode(), pytest.raises(RuntimeError, match=MESSAGE):
        MIXES[name]()


def attend(q: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    return functional.scaled_dot_product_attention(q, q, q, is_causal=True, dropout_p=0.5)


# Composites that make themselves a tensor "on the same device", which C++ takes for the CPU.
HELPERS = {
    "quantile": (lambda t: torch.quantile(t, 0.3), (7,)),
    "nanquantile": (lambda t: torch.nanquantile(t, 0.3), (7,)),
    "combinations": (torch.combinations, (5,)),
    "matrix_rank": (torch.linalg.matrix_rank, (2, 3, 3)),
    "causal_attention_with_dropout": (attend, (1, 2, 4, 8)),
    "one_hot": (lambda t: functional.one_hot((t > 0).long(), 3), (4,)),
    "istft": (
        lambda t: torch.istft(torch.complex(t, t), 8, window=torch.ones(8).to(t.device)),
        (5, 9),
    ),
    "vander": (torch.vander, (4,)),
    "softmax_in_another_dtype": (lambda t: torch.softmax(t, -1, dtype=torch.float64), (3, 3)),
    "circular_pad": (lambda t: functional.pad(t, (1, 1), mode="circular"), (1, 2, 4)),
}


@pytest.mark.parametrize("name", HELPERS)
@pytest.mark.parametrize("modes", [(), (PassesOn,), (LooksAtArguments,), (PassesOn, PassesOn)])
def test_pytorchs_own_helper_tensors_are_no_second_device(name, modes):
    function, shape = HELPERS[name]
    host = torch.randn(*shape)
    expected = function(host)
    device = host.to("hpu")
    for mode in modes:
        mode().__enter__()
    try:
        found = function(device)
    finally:
        for _ in modes:
            torch._C._pop_torch_dispatch_stack(None)
    assert found.device.type == "hpu"
    assert torch.equal(found.cpu(), expected)


def test_scalars_from_the_host_are_operands():
    assert (hpu(2) + torch.tensor(2.0)).tolist() == [3.0, 3.0]
    assert (torch.tensor(2.0) * hpu(2)).device.type == "hpu"
    assert torch.where(hpu(2) > 0, torch.tensor(5.0), hpu(2)).tolist() == [5.0, 5.0]


def test_gradients_from_another_device_are_refused():
    tensor = hpu(2)
    with pytest.raises(RuntimeError, match="assigned grad has data located on a different device"):
        tensor.grad = torch.ones(2)
    tensor.grad = hpu(2)
    assert tensor.grad.tolist() == [1.0, 1.0]
    tensor.grad = None
    assert tensor.grad is None


def test_gradients_for_parameters_from_another_device_are_refused():
    parameter = nn.Parameter(torch.zeros(2))
    with pytest.raises(RuntimeError, match="the tensor is on cpu and the gradient on hpu:0"):
        parameter.grad = hpu(2)
    parameter.grad = torch.ones(2)
    assert parameter.grad.tolist() == [1.0, 1.0]
    del parameter.grad
    assert parameter.grad is None


def begin(start: str, grad: str) -> None:
    tensor = torch.ones(2, device=start, requires_grad=True)
    (tensor * 2).backward(torch.ones(2, device=grad))


def begin_functional(start: str, grad: str) -> None:
    tensor = torch.ones(2, device=start, requires_grad=True)
    torch.autograd.grad(tensor * 2, tensor, torch.ones(2, device=grad))


@pytest.mark.parametrize("function", [begin, begin_functional])
def test_a_backward_that_begins_with_a_gradient_from_another_device_is_refused(function):
    with pytest.raises(RuntimeError, match="gradient at index 0 - expected device hpu:0 but got"):
        function("hpu", "cpu")
    with pytest.raises(RuntimeError, match="gradient at index 0 - expected device cpu but got hpu"):
        function("cpu", "hpu")
    function("hpu", "hpu")
    function("cpu", "cpu")
    scalar = hpu(2).requires_grad_().sum()
    scalar.backward(torch.tensor(1.0))  # without a dimension it is moved, as on any device
