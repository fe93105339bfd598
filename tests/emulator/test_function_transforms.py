"""`torch.func`, forward-mode derivatives and gradcheck give on the device what the CPU gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn import functional

# PyTorch scripts a few formulas of its own when the first derivative in forward mode is asked for.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

X = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def cube(x: Tensor) -> Tensor:
    return (x**3).sum()


def per_sample_gradients(x: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    module = nn.Linear(3, 2).to(x.device, x.dtype)
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(module, weights, row).pow(2).sum()

    return list(vmap(grad(loss), in_dims=(None, 0))(weights, x).values())


def dual(x: Tensor) -> list[Tensor]:
    with forward_ad.dual_level():
        value = functional.gelu(forward_ad.make_dual(x, torch.ones_like(x)))
        return list(forward_ad.unpack_dual(value))


TRANSFORMS = {
    "grad": grad(cube),
    "grad_of_grad": grad(lambda x: grad(cube)(x).sum()),
    "vmap": vmap(lambda row: row.softmax(-1) * 2),
    "vmap_of_two": lambda x: vmap(torch.dot)(x, x),
    "vmap_nested": vmap(vmap(torch.sin)),
    "vmap_linear": vmap(lambda row: functional.layer_norm(row, (3,))),
    "jacrev": jacrev(torch.sin),
    "jacfwd": jacfwd(lambda x: x.exp().sum(0)),
    "hessian": hessian(cube),
    "jvp_sin": lambda x: jvp(torch.sin, (x,), (x,)),
    "jvp_matmul": lambda x: jvp(lambda v: v @ v.t(), (x,), (x,)),
    "jvp_softmax": lambda x: jvp(lambda v: v.softmax(-1), (x,), (x,)),
    "jvp_prod": lambda x: jvp(torch.prod, (x,), (x,)),
    "jvp_layer_norm": lambda x: jvp(lambda v: functional.layer_norm(v, (3,)), (x,), (x,)),
    "vjp": lambda x: vjp(torch.tanh, x)[1](x),
    "per_sample_gradients": per_sample_gradients,
    "dual_numbers": dual,
    "functional_jacobian": lambda x: torch.autograd.functional.jacobian(torch.sin, x),
    "functional_hessian": lambda x: torch.autograd.functional.hessian(cube, x),
}


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in flat(item)]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_equals_the_cpus(name):
    expected = flat(TRANSFORMS[name](X))
    found = flat(TRANSFORMS[name](X.to("hpu")))
    assert len(expected) == len(found) > 0
    for a, b in zip(expected, found, strict=True):
        assert b.device.type == "hpu"
        torch.testing.assert_close(b.cpu(), a, rtol=1e-12, atol=1e-12)


def test_two_devices_raise_inside_a_transform():
    with pytest.raises(RuntimeError, match="at least two devices, hpu:0 and cpu!"):
        vmap(torch.dot)(X.to("hpu"), X)
    with pytest.raises(RuntimeError, match="at least two devices, hpu:0 and cpu!"):
        grad(lambda x: (x * X).sum())(X.to("hpu"))


def test_gradcheck():
    x = X.to("hpu").requires_grad_()
    assert gradcheck(lambda t: t.sin() * t, (x,), check_forward_ad=True)
    assert gradcheck(lambda t: t.softmax(-1), (x,))
    assert gradgradcheck(lambda t: t.sin() * t, (x,))

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            return t * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 3

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        gradcheck(Wrong.apply, (x,))
