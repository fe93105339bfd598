"""Loss scaling on the HPU steps, skips and grows as PyTorch's does, with one host read a step."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gaudi import emulator
from lightning_gaudi.precision import HPUGradScaler

SETTINGS = {"init_scale": 8.0, "growth_interval": 3}
INF, NAN = float("inf"), float("nan")


class Pair:
    """The same weights under our scaler on the HPU and under PyTorch's on the CPU."""

    def __init__(self, **settings: Any) -> None:
        self.weights = {d: nn.Parameter(torch.ones(3, device=d)) for d in ("hpu", "cpu")}
        self.optimizers = {d: torch.optim.Adam([w], 0.1) for d, w in self.weights.items()}
        self.scalers = {
            "hpu": HPUGradScaler(**settings),
            "cpu": torch.amp.GradScaler("cpu", **settings),
        }

    def step(self, factors: list[float]) -> None:
        for device, weight in self.weights.items():
            scaler, optimizer = self.scalers[device], self.optimizers[device]
            optimizer.zero_grad()
            loss = (weight * torch.tensor(factors, device=device)).sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    def check(self) -> None:
        found = self.weights["hpu"].detach().cpu()
        torch.testing.assert_close(found, self.weights["cpu"].detach(), rtol=0, atol=1e-6)
        assert self.scalers["hpu"].state_dict() == self.scalers["cpu"].state_dict()


def test_against_torchs_scaler() -> None:
    pair = Pair(**SETTINGS)
    skipped = []
    for factors in (
        [1.0, 2, 3], [INF, 0, 1], [1, 1, 1], [0, 0, 0], [2, 0.5, 1], [3, 1, 1], [1, NAN, 1],
        [-INF, NAN, 0], [1, 2, 3], [1, 2, 3], [4, 4, 4],
    ):  # fmt: skip
        before = pair.weights["hpu"].detach().clone()
        pair.step(factors)
        pair.check()
        skipped.append(torch.equal(before, pair.weights["hpu"]))
    # All zero moves Adam by its momentum: what is skipped is the whole step.
    assert skipped == [False, True, False, False, False, False, True, True, False, False, False]
    # Halved once, doubled once, halved twice, doubled once.
    assert pair.scalers["hpu"].get_scale() == 8 / 2 * 2 / 4 * 2


def test_the_scale_does_not_grow_to_infinity() -> None:
    pair = Pair(init_scale=2.0**127, growth_interval=1)
    pair.step([1e-3, 0, 0])
    pair.check()
    assert pair.scalers["hpu"].get_scale() == 2.0**127


def test_a_state_goes_both_ways() -> None:
    pair = Pair(init_scale=4.0, growth_factor=3.0, backoff_factor=0.25, growth_interval=5)
    pair.step([1, 1, 1])
    pair.step([INF, 1, 1])
    pair.step([1, 1, 1])
    ours, theirs = HPUGradScaler(), torch.amp.GradScaler("cpu")
    ours.load_state_dict(pair.scalers["cpu"].state_dict())
    theirs.load_state_dict(pair.scalers["hpu"].state_dict())
    pair.scalers = {"hpu": ours, "cpu": theirs}
    assert ours.get_scale() == 1.0
    for _ in range(5):
        pair.step([1, 1, 1])
    pair.check()
    assert ours.get_scale() == 3.0
    with pytest.raises(RuntimeError, match=r"^the state of the loss scaler is empty"):
        ours.load_state_dict({})


def test_a_step_reads_the_device_once() -> None:
    weights = [nn.Parameter(torch.ones(3, device="hpu")) for _ in range(4)]
    optimizer = torch.optim.SGD(weights, 0.1)
    scaler = HPUGradScaler()
    reads, compilations = [], []
    for _ in range(5):
        with emulator.record() as events:
            optimizer.zero_grad()
            scaler.scale(
                sum(((w * w).sum() for w in weights), start=torch.zeros((), device="hpu"))
            ).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update(scaler.get_scale() / 2)  # another scale each step compiles nothing
            torch.hpu.synchronize()
        kinds = [event.kind for event in events]
        reads.append(kinds.count("host_read"))
        compilations.append(kinds.count("compile"))
    assert reads == [1] * 5
    assert compilations[2:] == [0, 0, 0]


def test_torchs_own_would_fall_back_to_the_host() -> None:
    """What this class is for: without a kernel the card copies all gradients to the host."""
    from habana_frameworks.torch.hpu.metrics import metric_global

    def fallbacks() -> int:
        return int(dict(metric_global("cpu_fallback").stats())["TotalNumber"])

    counts = []
    for scaler in (torch.amp.GradScaler("hpu"), HPUGradScaler()):
        weight = nn.Parameter(torch.ones(3, device="hpu"))
        optimizer = torch.optim.SGD([weight], 0.1)
        scaler.scale(weight.sum()).backward()
        before = fallbacks()
        scaler.step(optimizer)
        scaler.update()
        counts.append(fallbacks() - before)
    assert counts[0] > 0
    assert counts[1] == 0


def test_scaled_losses_keep_their_structure() -> None:
    scaler = HPUGradScaler(init_scale=2.0**16)
    half = torch.full((), 4.0, dtype=torch.float16, device="hpu")
    scaled = scaler.scale([half, (torch.ones(2, device="hpu"),)])
    assert type(scaled) is list
    assert type(scaled[1]) is tuple
    assert scaled[0].dtype is torch.float32  # 2**18 is more than a float16 holds
    assert scaled[0].item() == 2.0**18
    assert scaled[1][0].tolist() == [2.0**16] * 2
    with pytest.raises(ValueError, match=r"^outputs must be a tensor or an iterable of tensors"):
        scaler.scale(1.0)


def test_two_optimizers_share_a_scale() -> None:
    weights = [nn.Parameter(torch.ones(2, device="hpu")) for _ in range(2)]
    first, second = (torch.optim.SGD([w], 1.0) for w in weights)
    scaler = HPUGradScaler(init_scale=4.0)
    factor = torch.tensor([1.0, INF], device="hpu")
    scaler.scale(weights[0].sum() + (weights[1] * factor).sum()).backward()
    scaler.step(first)
    scaler.step(second)
    scaler.update()
    assert weights[0].tolist() == [0.0, 0.0]
    assert weights[1].tolist() == [1.0, 1.0]
    assert scaler.get_scale() == 2.0


def _of(call: str, scaler: HPUGradScaler, optimizer: Any) -> None:
    if call == "update":
        scaler.update()
    else:
        getattr(scaler, call)(optimizer)


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        (["unscale_", "unscale_"], "unscale_() has already been called on this optimizer since "
         "the last update()."),
        (["step", "unscale_"], "unscale_() is being called after step()."),
        (["step", "step"], "step() has already been called since the last update()."),
        (["update"], "update() needs a step() or unscale_() before it; there was none."),
    ],
    ids=["unscale twice", "unscale after step", "step twice", "update first"],
)  # fmt: skip
def test_out_of_order(calls: list[str], message: str) -> None:
    weight = nn.Parameter(torch.ones(2, device="hpu"))
    optimizer = torch.optim.SGD([weight], 1.0)
    scaler = HPUGradScaler()
    scaler.scale(weight.sum()).backward()
    for call in calls[:-1]:
        _of(call, scaler, optimizer)
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        _of(calls[-1], scaler, optimizer)
    for call in ("step", "update") if "step" not in calls else ("update",):
        _of(call, scaler, optimizer)  # goes on


def test_what_cannot_be_unscaled() -> None:
    half = nn.Parameter(torch.ones(2, dtype=torch.float16, device="hpu"))
    optimizer = torch.optim.SGD([half], 1.0)
    half.grad = torch.ones_like(half)
    with pytest.raises(ValueError, match=r"^attempting to unscale float16 gradients: .*16-mixed"):
        HPUGradScaler().unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"^a step with loss scaling takes no closure"):
        HPUGradScaler().step(optimizer, closure=lambda: None)

    class Shard(Tensor):
        def to_local(self) -> Tensor:
            return self

    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2).as_subclass(Shard)
    with pytest.raises(RuntimeError, match=r"^loss scaling does not know of sharded gradients"):
        HPUGradScaler().unscale_(torch.optim.SGD([weight], 1.0))
