"""Gradients on the device equal the CPU's, and stay on the device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

FORMULAS = {
    "mul": lambda t: t * t,
    "matmul": lambda t: t @ t.t(),
    "softmax": lambda t: t.softmax(-1) * t,
    "log_softmax": lambda t: functional.log_softmax(t, -1)[:, 0],
    "layer_norm": lambda t: functional.layer_norm(t, (4,)) * t,
    "gelu": functional.gelu,
    "max": lambda t: t.max(1).values,
    "sort": lambda t: t.sort(1).values * torch.arange(4.0).to(t.device),
    "gather": lambda t: t.gather(1, torch.tensor([[0], [1], [2], [3]]).to(t.device)),
    "index": lambda t: t[[0, 2]],
    "slice": lambda t: t[1:, ::2],
    "cat": lambda t: torch.cat([t, t * 2]),
    "split": lambda t: t.split(2)[1] ** 2,
    "repeat": lambda t: t.repeat(2, 3),
    "expand": lambda t: t[:, :1].expand(4, 5),
    "cumprod": lambda t: t.cumprod(0),
    "prod": lambda t: t.prod(0),
    "sgn": torch.sgn,
    "copysign": lambda t: torch.copysign(t, -t),
    "where": lambda t: torch.where(t > 0, t, t * 3),
    "conv": lambda t: functional.conv2d(t.view(1, 1, 4, 4), t.view(1, 1, 4, 4)[..., :3, :3]),
    "max_pool": lambda t: functional.max_pool2d(t.view(1, 1, 4, 4), 2),
    "attention": lambda t: functional.scaled_dot_product_attention(*[t.view(1, 1, 4, 4)] * 3),
    "std": lambda t: t.std(1),
    "norm": lambda t: t.norm(),
    "to_dtype": lambda t: t.double().float() * 2,
    "view_in_place": lambda t: t.clone().view(16).mul_(t.view(16)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_gradient_equals_the_cpus(name):
    host = torch.randn(4, 4)
    device = host.to("hpu").requires_grad_()
    host.requires_grad_()
    expected = FORMULAS[name](host)
    found = FORMULAS[name](device)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-6)
    (grad,) = torch.autograd.grad(found.sum(), device, retain_graph=True)
    (expected_grad,) = torch.autograd.grad(expected.sum(), host, retain_graph=True)
    assert grad.device.type == "hpu"
    torch.testing.assert_close(grad.cpu(), expected_grad, rtol=0, atol=1e-6)
    found.sum().backward()
    assert device.grad.device.type == "hpu"
    torch.testing.assert_close(device.grad.cpu(), expected_grad, rtol=0, atol=1e-6)


def test_gradients_accumulate():
    tensor = torch.ones(3, device="hpu", requires_grad=True)
    for _ in range(2):
        tensor.cummax(0).values.sum().backward()  # this formula makes its zeros in C++
        (tensor * 2).sum().backward()
        assert tensor.grad.device.type == "hpu"
    host = torch.ones(3, requires_grad=True)
    (2 * host.cummax(0).values.sum() + 4 * host.sum()).backward()
    assert torch.equal(tensor.grad.cpu(), host.grad)


def test_an_optimizer_can_use_a_gradient_made_in_cpp():
    tensor = torch.ones(3, device="hpu", requires_grad=True)
    torch.sgn(tensor).sum().backward()
    torch.optim.SGD([tensor], lr=1.0, momentum=0.9, weight_decay=0.5).step()
    assert tensor.tolist() == [0.5] * 3


def test_unused_inputs_have_no_gradient():
    used, unused = (torch.ones(2, device="hpu", requires_grad=True) for _ in range(2))
    grads = torch.autograd.grad((used * 2).sum(), [used, unused], allow_unused=True)
    assert grads[0].tolist() == [2.0, 2.0]
    assert grads[1] is None


def test_second_derivatives():
    tensor = torch.tensor([2.0, 3.0], device="hpu", requires_grad=True)
    (first,) = torch.autograd.grad((tensor**3).sum(), tensor, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), tensor)
    assert second.tolist() == [12.0, 18.0]


def test_an_exception_in_backward_reaches_the_user():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            return tensor.clone()

        @staticmethod
        def backward(ctx, grad):
            raise KeyError("from backward")

    tensor = torch.ones(2, device="hpu", requires_grad=True)
    with pytest.raises(KeyError, match="from backward"):
        Fails.apply(tensor).sum().backward()
    (tensor * 2).sum().backward()
    assert tensor.grad.tolist() == [2.0, 2.0]


def test_a_custom_function_sees_device_tensors():
    seen = []

    class Doubles(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor):
            ctx.save_for_backward(tensor)
            return tensor * 2

        @staticmethod
        def backward(ctx, grad):
            (saved,) = ctx.saved_tensors
            seen.extend([saved.device.type, grad.device.type])
            return grad * 2 + 0 * saved

    tensor = torch.ones(2, device="hpu", requires_grad=True)
    Doubles.apply(tensor).sum().backward()
    assert seen == ["hpu", "hpu"]
    assert tensor.grad.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_equals_the_plain_run(use_reentrant):
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 4)).to("hpu")
    batch = torch.randn(3, 4).to("hpu").requires_grad_()
    torch.manual_seed(2)
    module(batch).sum().backward()
    expected = [p.grad.cpu() for p in module.parameters()]
    module.zero_grad()
    torch.manual_seed(2)
    checkpoint(module, batch, use_reentrant=use_reentrant).sum().backward()
    for parameter, grad in zip(module.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad.cpu(), grad)


def test_hooks_on_tensors():
    tensor = torch.ones(2, device="hpu", requires_grad=True)
    seen = []
    tensor.register_hook(lambda grad: seen.append(grad.device.type) or grad * 3)
    (tensor * 2).sum().backward()
    assert seen == ["hpu"]
    assert tensor.grad.tolist() == [6.0, 6.0]


def test_saved_tensor_hooks():
    moved = []

    def pack(tensor):
        moved.append(tensor.device.type)
        return tensor.cpu()

    tensor = torch.full((2,), 3.0, device="hpu", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.to("hpu")):
        loss = (tensor * tensor).sum()
    loss.backward()
    assert set(moved) == {"hpu"}
    assert tensor.grad.tolist() == [6.0, 6.0]


def test_in_place_on_a_leaf_raises_as_on_the_cpu():
    tensor = torch.ones(2, device="hpu", requires_grad=True)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        tensor.add_(1)
    saved = torch.ones(2, device="hpu", requires_grad=True).exp()
    loss = (saved * saved).sum()
    saved.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_function_transforms():
    device = torch.arange(3.0, device="hpu")
    assert torch.vmap(lambda t: t * 2)(device).tolist() == [0.0, 2.0, 4.0]
    assert torch.func.grad(lambda t: (t**2).sum())(device).tolist() == [0.0, 2.0, 4.0]
    hessian = torch.autograd.functional.hessian(lambda t: (t**3).sum(), device)
    assert hessian.tolist() == [[0, 0, 0], [0, 6, 0], [0, 0, 12]]
