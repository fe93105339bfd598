"""Fused optimizers: their formulas, what they compile, and their state."""

from __future__ import annotations

import copy
import math

import habana_frameworks.torch.core as htcore
import pytest
import torch
from habana_frameworks.torch.hpex.optimizers import FusedAdamW, FusedLamb, FusedSGD
from habana_frameworks.torch.hpu.metrics import metric_localcontext
from torch import nn

from lightning_gaudi import emulator

SHAPES = [(3, 4), (5,), (2, 3, 2)]


def parameters(device: str, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [
        nn.Parameter(torch.randn(shape, generator=generator).to(dtype).to(device))
        for shape in SHAPES
    ]


def give_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype).to(p.device)


def reference_adamw(params, states, step, lr, betas, eps, weight_decay, bias_correction):
    """The formula in float64, from the bridge's sources."""
    for p, state in zip(params, states, strict=True):
        g = p.grad.double()
        state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * g
        state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * g * g
        size = lr
        if bias_correction:
            size = lr * math.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
        new = p.detach().double() * (1 - weight_decay * lr)
        new -= size * state["m"] / (state["v"].sqrt() + eps)
        p.data = new.to(p.dtype)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_adamw_against_the_formula(weight_decay, bias_correction):
    options = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": weight_decay}
    ours, reference = parameters("hpu"), parameters("cpu")
    optimizer = FusedAdamW(ours, **options, bias_correction=bias_correction)
    states: list[dict] = [{} for _ in reference]
    for step in range(1, 6):
        give_gradients(ours, step)
        give_gradients(reference, step)
        optimizer.step()
        reference_adamw(reference, states, step, **options, bias_correction=bias_correction)
    for p, expected, state in zip(ours, reference, states, strict=True):
        torch.testing.assert_close(p.cpu(), expected, rtol=1e-5, atol=1e-6)
        found = optimizer.state[p]
        torch.testing.assert_close(found["exp_avg"].cpu(), state["m"].float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            found["exp_avg_sq"].cpu(), state["v"].float(), rtol=1e-5, atol=1e-6
        )


def test_adamw_against_torch_where_eps_does_not_matter():
    ours, reference = parameters("hpu"), parameters("cpu")
    fused = FusedAdamW(ours, lr=0.1, betas=(0.9, 0.99), eps=0.0, weight_decay=0.1)
    stock = torch.optim.AdamW(reference, lr=0.1, betas=(0.9, 0.99), eps=0.0, weight_decay=0.1)
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(reference, step)
        fused.step()
        stock.step()
    for p, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(p.cpu(), expected, rtol=1e-5, atol=1e-6)


def test_adamw_differs_from_torch_in_eps():
    def first_step(optimizer_class: type, device: str) -> float:
        p = nn.Parameter(torch.zeros(1, device=device))
        p.grad = torch.full((1,), 1e-3, device=device)
        optimizer_class([p], lr=1.0, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.0).step()
        return p.item()

    assert first_step(torch.optim.AdamW, "cpu") == pytest.approx(-0.5, rel=1e-4)
    scale = math.sqrt(1 - 0.999)
    expected = -(scale / (1 - 0.9)) * 1e-4 / (scale * 1e-3 + 1e-3)
    assert first_step(FusedAdamW, "hpu") == pytest.approx(expected, rel=1e-4)


def test_moments_in_another_dtype():
    params = parameters("hpu", torch.bfloat16)
    reference = parameters("cpu", torch.bfloat16)
    optimizer = FusedAdamW(params, lr=0.1, moments_dtype=torch.float32)
    mixed = FusedAdamW(parameters("hpu"), moments_dtype=(torch.bfloat16, torch.float32))
    states: list[dict] = [{} for _ in reference]
    for step in range(1, 4):
        give_gradients(params, step)
        give_gradients(reference, step)
        optimizer.step()
        reference_adamw(reference, states, step, 0.1, (0.9, 0.999), 1e-6, 0.0, True)
    for p, expected, state in zip(params, reference, states, strict=True):
        assert p.dtype == torch.bfloat16
        assert optimizer.state[p]["exp_avg"].dtype == torch.float32
        torch.testing.assert_close(
            optimizer.state[p]["exp_avg_sq"].cpu(), state["v"].float(), rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(p.cpu(), expected, rtol=4e-2, atol=2e-3)
    give_gradients(mixed.param_groups[0]["params"], 0)
    mixed.step()
    state = mixed.state[mixed.param_groups[0]["params"][0]]
    assert (state["exp_avg"].dtype, state["exp_avg_sq"].dtype) == (torch.bfloat16, torch.float32)
    plain = FusedAdamW(params)
    plain.step()
    assert plain.state[params[0]]["exp_avg"].dtype == torch.bfloat16


def test_parameters_without_gradients_are_left_alone():
    params = parameters("hpu")
    optimizer = FusedAdamW(params, lr=0.1)
    before = [p.tolist() for p in params]
    optimizer.step()
    assert "step" not in optimizer.param_groups[0]
    params[1].grad = torch.ones_like(params[1])
    optimizer.step()
    assert optimizer.param_groups[0]["step"] == 1
    assert [p.tolist() == old for p, old in zip(params, before, strict=True)] == [True, False, True]
    assert list(optimizer.state) == [params[1]]


def test_groups_have_their_own_settings():
    first, second, third = parameters("hpu")
    optimizer = FusedAdamW(
        [{"params": [first, second], "lr": 0.5}, {"params": [third], "weight_decay": 0.5}], lr=0.1
    )
    give_gradients([first, second, third], 1)
    before = third.detach().cpu().clone()
    optimizer.step()
    change = third.detach().cpu() - before * (1 - 0.5 * 0.1)
    # The first step of Adam moves by the learning rate where eps is small.
    torch.testing.assert_close(change.abs(), torch.full_like(change, 0.1), rtol=1e-2, atol=1e-4)


def test_the_state_survives_a_round_trip():
    straight, broken = parameters("hpu"), parameters("hpu")
    one, two = FusedAdamW(straight, lr=0.1), FusedAdamW(broken, lr=0.1)
    for step in range(3):
        give_gradients(straight, step)
        give_gradients(broken, step)
        one.step()
        two.step()
    saved = copy.deepcopy(two.state_dict())
    assert saved["param_groups"][0]["step"] == 3
    restored = FusedAdamW(broken, lr=0.7)
    restored.load_state_dict(saved)
    assert restored.state[broken[0]]["exp_avg"].device.type == "hpu"
    give_gradients(straight, 9)
    give_gradients(broken, 9)
    one.step()
    restored.step()
    for p, expected in zip(broken, straight, strict=True):
        assert p.tolist() == expected.tolist()


def test_it_reads_the_state_of_torchs_adamw():
    params = parameters("hpu")
    stock = torch.optim.AdamW(params, lr=0.1)
    give_gradients(params, 1)
    stock.step()
    fused = FusedAdamW(params)
    fused.load_state_dict(stock.state_dict())
    moment = fused.state[params[0]]["exp_avg"].tolist()
    assert moment == stock.state[params[0]]["exp_avg"].tolist()
    fused.step()
    assert fused.param_groups[0]["step"] == 1


def test_a_closure_computes_the_loss():
    (p, *_) = parameters("hpu")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    for optimizer in (FusedAdamW([p], lr=0.1), FusedSGD([p], lr=0.1)):
        losses = [optimizer.step(closure).item() for _ in range(3)]
        assert losses[0] > losses[1] > losses[2]
    assert optimizer.step() is None


@pytest.mark.parametrize("name", ["adamw", "sgd", "momentum", "lamb"])
def test_no_compilations_after_the_third_step_of_a_schedule(name):
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).to("hpu")
    optimizer = {
        "adamw": lambda: FusedAdamW(module.parameters(), lr=0.1, weight_decay=0.01),
        "sgd": lambda: FusedSGD(module.parameters(), lr=0.1, weight_decay=0.01),
        "lamb": lambda: FusedLamb(module.parameters(), lr=0.1),
        "momentum": lambda: FusedSGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    }[name]()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    compilations = []
    rates = set()
    for step in range(6):
        with metric_localcontext("graph_compilation") as metric:
            batch = torch.randn(4, 6).to("hpu")
            optimizer.zero_grad()
            module(batch).square().mean().backward()
            optimizer.step()
            schedule.step()
            htcore.mark_step()
        rates.add(optimizer.param_groups[0]["lr"])
        compilations.append(dict(metric.stats())["TotalNumber"])
        assert step < 3 or compilations[-1] == 0, compilations
    assert compilations[0] > 0
    assert len(rates) == 6


def test_a_step_marks_before_each_group_and_after():
    first, second, _ = parameters("hpu")
    optimizer = FusedAdamW([{"params": [first]}, {"params": [second]}])
    give_gradients([first, second], 1)
    with emulator.record() as events:
        optimizer.step()
    kinds = [event.kind for event in events]
    assert kinds.count("mark_step") == 3
    assert "host_read" not in kinds
    assert "cpu_fallback" not in kinds
    assert "d2h" not in kinds


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_against_torch(momentum, nesterov, weight_decay):
    if nesterov and not momentum:
        with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero"):
            FusedSGD(parameters("hpu"), lr=0.1, nesterov=True)
        return
    options = {
        "lr": 0.1,
        "momentum": momentum,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
    }
    ours, reference = parameters("hpu"), parameters("cpu")
    fused, stock = FusedSGD(ours, **options), torch.optim.SGD(reference, **options)
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(reference, step)
        if step == 2:  # one without a gradient
            ours[0].grad = reference[0].grad = None
        fused.step()
        stock.step()
    for p, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(p.cpu(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: FusedAdamW(p, lr=-1), ValueError, r"Invalid learning rate: -1 - should be >="),
        (lambda p: FusedAdamW(p, betas=(1.0, 0.9)), ValueError, r"beta parameter: 1\.0"),
        (lambda p: FusedAdamW(p, betas=(0.9, -0.1)), ValueError, r"beta parameter: -0\.1"),
        (lambda p: FusedAdamW(p, eps=-1e-6), ValueError, "epsilon value: -1e-06"),
        (
            lambda p: FusedAdamW(p, moments_dtype=(torch.float8_e4m3fn, torch.float8_e5m2)),
            NotImplementedError,
            r"no moments in torch\.float8_e4m3fn",
        ),
        (lambda p: FusedSGD(p, lr=-1.0), ValueError, r"Invalid learning rate: -1\.0"),
        (lambda p: FusedSGD(p, lr=1.0, momentum=-1), ValueError, "momentum value: -1"),
        (lambda p: FusedSGD(p, 1.0, dampening=0.5), NotImplementedError, "has no dampening"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(parameters("hpu"))


def reference_lamb(params, states, step, options, use_lamb):
    """The formula in float64."""
    beta1, beta2 = 0.9, 0.999
    gradients = {p: p.grad.double() for p in params if p.grad is not None}
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    for p, g in gradients.items():
        if options["max_grad_norm"] is not None:
            g = g / max(1.0, float(norm) / options["max_grad_norm"])
        state = states.setdefault(p, {})
        beta3 = 1 - beta1 if options["grad_averaging"] else 1.0
        state["m"] = beta1 * state.get("m", 0) + beta3 * g
        state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g * g
        corrections = (1 - beta1**step, 1 - beta2**step) if options["bias_correction"] else (1, 1)
        change = (state["m"] / corrections[0]) / ((state["v"] / corrections[1]).sqrt() + 1e-6)
        w = p.detach().double()
        change = change + options["weight_decay"] * w
        if (options["weight_decay"] or use_lamb) and w.norm() > 0 and change.norm() > 0:
            change = change * w.norm() / change.norm()
        p.data = (w - 0.1 * change).to(p.dtype)


@pytest.mark.parametrize("use_lamb", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("max_grad_norm", [None, 0.5, 100.0])
@pytest.mark.parametrize("plain", [True, False])
def test_lamb_against_the_formula(use_lamb, weight_decay, max_grad_norm, plain):
    options = {
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "bias_correction": not plain,
        "grad_averaging": not plain,
    }
    ours, reference = parameters("hpu"), parameters("cpu")
    with torch.no_grad():  # a parameter without a norm is not scaled by it
        ours[1].zero_()
        reference[1].zero_()
    optimizer = FusedLamb(ours, lr=0.1, use_lamb=use_lamb, **options)
    states: dict = {}
    for step in range(1, 5):
        give_gradients(ours, step)
        give_gradients(reference, step)
        if step == 3:
            ours[2].grad = reference[2].grad = None
        optimizer.step()
        reference_lamb(reference, states, step, options, use_lamb)
    for p, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(p.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_lamb_forgets_gradients_as_it_was_told():
    (p, *_) = parameters("hpu")
    for set_grad_none, expected in ((True, None), (False, 0.0)):
        p.grad = torch.ones_like(p)
        optimizer = FusedLamb([p], set_grad_none=set_grad_none)
        optimizer.zero_grad()
        assert p.grad is None if expected is None else p.grad.sum().item() == expected
    p.grad = None
    before = p.tolist()
    optimizer.step()
    assert p.tolist() == before
    with pytest.raises(RuntimeError, match="does not support the AMSGrad variant"):
        FusedLamb([p], amsgrad=True)
