"""``torch.autocast("hpu")`` lowers ops on the device and leaves the CPU's setting as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn


def product() -> torch.dtype:
    ones = torch.ones(2, 2, device="hpu")
    return (ones @ ones).dtype


def host_product() -> torch.dtype:
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matmul_is_lowered_and_softmax_is_not(dtype):
    ones = torch.ones(2, 2, device="hpu")
    with torch.autocast("hpu", dtype=dtype):
        assert (ones @ ones).dtype == dtype
        assert nn.functional.linear(ones, ones).dtype == dtype
        assert (ones + ones).dtype == torch.float32
        assert torch.hpu.is_autocast_hpu_enabled()
        assert torch.hpu.get_autocast_hpu_dtype() == dtype
    assert product() == torch.float32
    assert not torch.hpu.is_autocast_hpu_enabled()


def test_the_default_is_bfloat16():
    with torch.autocast("hpu"):
        assert product() == torch.bfloat16
    with torch.autocast("hpu", enabled=False):
        assert product() == torch.float32


def test_nesting_restores_what_was():
    with torch.autocast("hpu", dtype=torch.float16):
        with torch.autocast("hpu", enabled=False):
            assert product() == torch.float32
        assert product() == torch.float16
        with torch.autocast("hpu", dtype=torch.bfloat16):
            assert product() == torch.bfloat16
        assert product() == torch.float16
    assert product() == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_the_cpus_own_autocast_comes_back():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autocast("hpu", dtype=torch.float16):
            assert product() == torch.float16
        assert host_product() == torch.bfloat16
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    assert host_product() == torch.float32


def test_an_exception_inside_restores_it_too():
    with pytest.raises(KeyError), torch.autocast("hpu"):
        raise KeyError
    assert not torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("hpu")


def test_a_training_step_equals_the_cpus():
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    device = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    device.load_state_dict(host.state_dict())
    device.to("hpu")
    batch = torch.randn(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        host(batch).float().sum().backward()
    with torch.autocast("hpu", dtype=torch.bfloat16):
        device(batch.to("hpu")).float().sum().backward()
    for expected, found in zip(host.parameters(), device.parameters(), strict=True):
        assert found.grad.dtype == torch.float32
        assert torch.equal(found.grad.cpu(), expected.grad)


def test_as_a_decorator_and_with_custom_functions():
    class Doubles(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="hpu", cast_inputs=torch.float32)
        def forward(ctx, tensor):
            assert not torch.is_autocast_enabled("hpu")
            return tensor * 2

        @staticmethod
        @torch.amp.custom_bwd(device_type="hpu")
        def backward(ctx, grad):
            return grad * 2

    @torch.autocast("hpu", dtype=torch.bfloat16)
    def run() -> torch.Tensor:
        ones = torch.ones(2, 2, device="hpu", requires_grad=True)
        out = Doubles.apply(ones @ ones)
        out.sum().backward()
        return out

    assert run().dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")
