"""A training loop of fixed shapes compiles nothing after its third step; what changes, shows."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import habana_frameworks.torch.core as htcore
import pytest
import torch
from habana_frameworks.torch.hpex.normalization import FusedClipNorm
from habana_frameworks.torch.hpex.optimizers import FusedAdamW
from torch import nn
from transformers.optimization import Adafactor

from lightning_gaudi import emulator

NUM_STEPS = 7
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd_momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "sgd_weight_decay": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw_amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "fused_adamw": lambda p: FusedAdamW(p, lr=0.01),
    "adafactor_torch": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "adafactor_transformers": lambda p: Adafactor(
        p, lr=0.01, scale_parameter=False, relative_step=False, beta1=0.9
    ),
    "adafactor_relative_step": Adafactor,
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
}
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], object]] = {
    "constant": lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
    "warm_up": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: (step + 1) / 20),
}


_widths = itertools.count(20)


def train(
    optimizer_name: str, schedule: str = "cosine", *, change: Callable[[nn.Module, int], None]
) -> list[int]:
    """The number of compilations in each step of a loop that logs its loss."""
    torch.manual_seed(0)
    width = next(_widths)  # no recipe of an earlier run fits
    module = nn.Sequential(
        nn.Linear(width, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 1)
    ).to("hpu")
    optimizer = OPTIMIZERS[optimizer_name](list(module.parameters()))
    scheduler = None
    if optimizer.param_groups[0]["lr"] is not None:
        scheduler = SCHEDULES[schedule](optimizer)
    clip = FusedClipNorm(module.parameters(), 1.0)
    compilations, logged = [], []
    for step in range(NUM_STEPS):
        with emulator.record() as events:
            change(module, step)
            batch = torch.randn(4, width).to("hpu")
            optimizer.zero_grad()
            loss = module(batch).square().mean()
            loss.backward()
            htcore.mark_step()
            clip.clip_norm(module.parameters())
            optimizer.step()
            htcore.mark_step()
            if scheduler is not None:
                scheduler.step()
            logged.append(loss.item())
        compilations.append([event.kind for event in events].count("compile"))
    assert len(set(logged)) == NUM_STEPS  # it trained
    return compilations


def unchanged(module: nn.Module, step: int) -> None:
    pass


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_compiles_after_the_third_step(name, schedule):
    compilations = train(name, schedule, change=unchanged)
    assert compilations[0] > 0
    assert compilations[3:] == [0] * (NUM_STEPS - 3)


def drop_more(module: nn.Module, step: int) -> None:
    module[3].p = 0.1 + 0.05 * step


def other_epsilon(module: nn.Module, step: int) -> None:
    module[1].eps = 1e-5 * (step + 1)


@pytest.mark.parametrize("change", [drop_more, other_epsilon])
def test_a_number_that_a_card_bakes_in_compiles_at_each_change(change):
    compilations = train("adamw", change=change)
    assert all(number >= 1 for number in compilations)
    # The second graph of a step, the optimizer's, does not hold the number.
    assert compilations[3:] == [1] * (NUM_STEPS - 3)


def test_a_growing_batch_compiles_both_ways_at_each_step():
    module = nn.Linear(3, 1).to("hpu")
    optimizer = torch.optim.AdamW(module.parameters())
    compilations = []
    for step in range(6):
        with emulator.record() as events:
            optimizer.zero_grad()
            module(torch.ones(step + 50, 3).to("hpu")).mean().backward()
            htcore.mark_step()
            optimizer.step()
            htcore.mark_step()
        compilations.append([event.detail for event in events if event.kind == "compile"])
    assert [len(details) for details in compilations[3:]] == [1, 1, 1]
    assert f"[{5 + 50}, 3]" in compilations[5][0]
