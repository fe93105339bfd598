"""``torch.autocast("hpu")`` lowers ops on the device and leaves the CPU's setting as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


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


def bf(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bfloat16, device="hpu")


def fp(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, device="hpu")


F = nn.functional
LOWERED = {
    "addmm": lambda: torch.addmm(fp(2, 2), fp(2, 2), fp(2, 2)),
    "bmm": lambda: torch.bmm(fp(1, 2, 2), fp(1, 2, 2)),
    "baddbmm": lambda: torch.baddbmm(fp(1, 2, 2), fp(1, 2, 2), fp(1, 2, 2)),
    "conv1d": lambda: F.conv1d(fp(1, 2, 4), fp(2, 2, 3)),
    "conv_transpose2d": lambda: F.conv_transpose2d(fp(1, 2, 4, 4), fp(2, 2, 3, 3)),
    "dot": lambda: torch.dot(fp(3), fp(3)),
    "dropout": lambda: F.dropout(fp(3)),
    "leaky_relu": lambda: F.leaky_relu(fp(3)),
    "matmul": lambda: fp(2, 2) @ fp(2, 2),
    "mean": lambda: fp(3).mean(),
    "mul": lambda: fp(3) * fp(3),
    "mul_number": lambda: fp(3) * 2.5,
    "softmax": lambda: fp(2, 2).softmax(-1),
    "log_softmax": lambda: fp(2, 2).log_softmax(-1),
    "scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(*[fp(1, 1, 2, 2)] * 3),
    "layer_norm": lambda: F.layer_norm(fp(2, 4), (4,), fp(4), fp(4)),
    "group_norm": lambda: F.group_norm(fp(1, 4, 2), 2, fp(4), fp(4)),
    "batch_norm": lambda: F.batch_norm(fp(2, 4), fp(4), fp(4), fp(4), fp(4)),
    "instance_norm": lambda: F.instance_norm(fp(1, 4, 2)),
    "add_of_two_lowered": lambda: bf(2) + bf(2),
}
IN_FLOAT32 = {
    "exp": lambda: bf(3).exp(),
    "log": lambda: bf(3).log(),
    "div": lambda: bf(3) / bf(3),
    "div_number": lambda: bf(3) / 2,
    "pow": lambda: bf(3) ** 2,
    "rsqrt": lambda: bf(3).rsqrt(),
    "softplus": lambda: F.softplus(bf(3)),
    "cross_entropy": lambda: F.cross_entropy(bf(2, 3), torch.zeros(2, dtype=int, device="hpu")),
    "mse_loss": lambda: F.mse_loss(bf(3), bf(3)),
    "embedding": lambda: F.embedding(torch.zeros(2, dtype=int, device="hpu"), fp(3, 3)),
    "topk": lambda: bf(4).topk(2).values,
    "add_mixed": lambda: bf(2) + fp(2),
    "cat_mixed": lambda: torch.cat([bf(2), fp(2)]),
    "stack_mixed": lambda: torch.stack([bf(2), fp(2)]),
    "neither_list": lambda: fp(3).tanh(),
    "in_place": lambda: fp(2, 2).mul_(bf(2, 2)),
}


@pytest.mark.parametrize("name", [*LOWERED, *IN_FLOAT32])
def test_the_bridges_lists_decide(name):
    make = LOWERED.get(name) or IN_FLOAT32[name]
    with torch.autocast("hpu", dtype=torch.bfloat16):
        found = make()
    assert found.dtype == (torch.bfloat16 if name in LOWERED else torch.float32)
    assert found.device.type == "hpu"


def test_values_equal_those_of_casting_by_hand():
    torch.manual_seed(0)
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    scale, shift = torch.randn(5), torch.randn(5)
    device = [t.to("hpu") for t in (x, weight, scale, shift)]
    with torch.autocast("hpu"):
        hidden = F.linear(device[0], device[1])
        found = F.layer_norm(hidden, (5,), device[2], device[3]).softmax(-1).log()
    hidden = F.linear(x.bfloat16(), weight.bfloat16())
    expected = F.layer_norm(hidden, (5,), scale, shift).softmax(-1).float().log()
    assert torch.equal(found.cpu(), expected)


def test_what_autocast_leaves_alone():
    with torch.autocast("hpu"):
        assert (torch.ones(2, dtype=torch.float64, device="hpu") * 2).dtype == torch.float64
        assert (torch.ones(2, dtype=torch.int64, device="hpu") * 2).dtype == torch.int64
        out = torch.empty(2, 2, device="hpu")
        assert torch.mm(fp(2, 2), fp(2, 2), out=out).dtype == torch.float32
        assert host_product() == torch.float32  # tensors on the host are not the HPU's
        assert not torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product() == torch.float32
        assert host_product() == torch.bfloat16


def test_the_cpus_autocast_inside_ours_is_its_own():
    with torch.autocast("hpu", dtype=torch.float16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (product(), host_product()) == (torch.float16, torch.bfloat16)
            assert torch.is_autocast_enabled("cpu")
        assert (product(), host_product()) == (torch.float16, torch.float32)
    assert host_product() == torch.float32


def test_dtypes_that_cannot_be_combined():
    with (
        torch.autocast("hpu", dtype=torch.bfloat16),
        pytest.raises(RuntimeError, match=r"cannot combine .* with torch\.float16\. Cast them"),
    ):
        torch.cat([bf(2), torch.ones(2, dtype=torch.float16, device="hpu")])


def test_casts_are_not_cached():
    """A cached cast would join one graph and be missing from the next (bridge, hpu_autocast)."""

    class Casts(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.number += func is torch.ops.aten._to_copy.default
            return func(*args, **(kwargs or {}))

    x, weight = bf(2, 2), fp(2, 2).requires_grad_()
    with Casts() as casts, torch.autocast("hpu", cache_enabled=True):
        for _ in range(3):
            x @ weight
    assert casts.number == 3


def test_lists_from_files(run_python, tmp_path):
    lower, fp32 = tmp_path / "lower.txt", tmp_path / "fp32.txt"
    lower.write_text("add\nexp\n")
    fp32.write_text("linear\nno_such_op\n")
    code = """
        import torch
        ones = torch.ones(2, 2, device="hpu")
        with torch.autocast("hpu"):
            for out in (
                ones + ones,
                ones.exp(),
                torch.nn.functional.linear(ones.bfloat16(), ones.bfloat16()),
                ones @ ones,
            ):
                print(out.dtype)
    """
    result = run_python(
        code,
        PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST=str(lower),
        PT_HPU_AUTOCAST_FP32_OPS_LIST=str(fp32),
    )
    bfloat16, float32 = "torch.bfloat16", "torch.float32"
    assert result.stdout.split() == [bfloat16, bfloat16, float32, float32]


def test_a_list_that_is_not_there(run_python):
    code = """
        import torch
        try:
            with torch.autocast("hpu"):
                pass
        except FileNotFoundError as error:
            print(error)
    """
    output = run_python(code, PT_HPU_AUTOCAST_FP32_OPS_LIST="missing.txt").stdout
    assert "PT_HPU_AUTOCAST_FP32_OPS_LIST must name a file" in output
    assert "there is no file 'missing.txt'" in output


def test_the_hosts_autocast_is_stock(run_python):
    """The wrapped kernels give plain CPU tensors what PyTorch gives them."""
    code = """
        import torch
        from torch.nn import functional as F
        torch.manual_seed(0)
        x = torch.randn(1, 2, 4, 4, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results = [
                F.conv2d(x, torch.ones(2, 2, 3, 3)), x[0, 0] @ x[0, 1], F.linear(x, x[0, 0]),
                F.mse_loss(x, x * 2), F.layer_norm(x, (4,)), x.softmax(-1), x.exp(), x * 2, x + x,
                torch.cat([x, x.bfloat16()]), F.cross_entropy(x[0, 0], torch.zeros(4, dtype=int)),
                F.scaled_dot_product_attention(x, x, x), F.gelu(x), x.bfloat16().pow(2), x.mean(),
                F.avg_pool3d(x[None], 2), torch.linalg.qr(x[0, 0].bfloat16()).R, x.sum(),
            ]
            loss = sum(r.float().sum() for r in results)
        loss.backward()
        print([(str(r.dtype), r.float().sum().item()) for r in results], x.grad.sum().item())
    """
    stock = run_python(code, LIGHTNING_GAUDI_EMULATOR=None).stdout
    assert run_python(code).stdout == stock


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gradient_scaler_trains_as_by_hand(dtype):
    def train(use_scaler: bool) -> tuple[list[torch.Tensor], list[float]]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to("hpu")
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("hpu", init_scale=2.0**10, enabled=use_scaler)
        batch = torch.randn(6, 4).to("hpu")
        scales = []
        for _ in range(4):
            optimizer.zero_grad()
            with torch.autocast("hpu", dtype=dtype):
                loss = module(batch).float().square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return [p.detach().cpu() for p in module.parameters()], scales

    (found, scales), (expected, _) = train(True), train(False)
    assert scales == [2.0**10] * 4
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_gradient_scaler_skips_a_step_that_overflowed():
    weight = torch.ones(2, device="hpu", requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("hpu", init_scale=4.0)
    scaler.scale((weight * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.tolist() == [1.0, 1.0]
    assert scaler.get_scale() == 2.0
    state = scaler.state_dict()
    again = torch.amp.GradScaler("hpu")
    again.load_state_dict(state)
    assert again.get_scale() == 2.0
