"""Which parameters decay, which optimizer steps, and what learning rate a step has."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as tf
from modules.tasks_cases import CASES, make
from torch import nn

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.optimization import (
    make_optimizer,
    make_schedule,
    parameter_groups,
)

SETTINGS = {"learning_rate": 0.1, "weight_decay": 0.01, "betas": (0.9, 0.999), "eps": 1e-8}


@pytest.mark.parametrize("name", CASES)
def test_each_parameter_is_in_one_group_as_in_transformers(name: str) -> None:
    model = make(name).model
    decayed, kept = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    ids = [id(p) for p in (*decayed["params"], *kept["params"])]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    # What transformers.Trainer decays.
    theirs = tf.Trainer.get_decay_parameter_names(None, model)
    assert {id(p) for p in decayed["params"]} == {
        id(p) for n, p in model.named_parameters() if n in theirs
    }


def test_norms_by_class_and_by_name() -> None:
    class MyRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

    model = nn.ModuleDict(
        {
            "normal": nn.Linear(2, 2),
            "ln_1": nn.Linear(2, 2),
            "batch": nn.BatchNorm2d(2),
            "own": MyRMSNorm(),
            "rnn": nn.GRU(2, 2),
        }
    )
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, kept = parameter_groups(model, 0.1)
    assert {names[id(p)] for p in decayed["params"]} == {
        "normal.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0",
    }  # fmt: skip
    assert len(kept["params"]) == len(names) - 3


def test_shared_and_frozen_parameters() -> None:
    model = nn.ModuleDict(
        {"one": nn.Linear(2, 2), "two": nn.Linear(2, 2), "three": nn.Linear(2, 2)}
    )
    model["two"].weight = model["one"].weight
    model["three"].requires_grad_(False)
    decayed, kept = parameter_groups(model, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(model["one"].weight)]
    assert len(kept["params"]) == 2
    model.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="nothing to train: no parameter"):
        make_optimizer(model, "adamw", on_hpu=False, **SETTINGS)


def test_fused_adamw_needs_an_hpu() -> None:
    with pytest.raises(ConfigurationError, match="optimizer='auto', which takes it on an HPU"):
        make_optimizer(nn.Linear(2, 2), "fused-adamw", on_hpu=False, **SETTINGS)


@pytest.mark.parametrize(
    ("name", "theirs", "warmup_steps", "steps"),
    [
        ("linear", "linear", 3, 3),
        ("cosine", "cosine", 0.25, 3),  # rounded up
        ("constant", "constant_with_warmup", 2, 2),
        ("polynomial", "polynomial", 0, 0),
        ("inverse_sqrt", "inverse_sqrt", 2, 2),
        ("cosine_with_restarts", "cosine_with_restarts", 1.0, 10),
    ],
)
def test_rates_are_those_of_transformers(
    name: str, theirs: str, warmup_steps: float, steps: int
) -> None:
    rates = []
    for make_it in (
        lambda optimizer: make_schedule(optimizer, name, warmup_steps, 10),
        lambda optimizer: tf.get_scheduler(theirs, optimizer, steps, 10),
    ):
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5)
        schedule = make_it(optimizer)
        rates.append([])
        for _ in range(10):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 2


def test_a_run_without_an_end() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5)
    make_schedule(optimizer, "constant", 5, math.inf)
    with pytest.raises(ConfigurationError, match="schedule='linear' needs to know how many steps"):
        make_schedule(optimizer, "linear", 5, math.inf)
    with pytest.raises(ConfigurationError, match=r"warmup_steps=0.1 needs to know"):
        make_schedule(optimizer, "constant", 0.1, math.inf)
