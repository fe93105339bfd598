"""AdamW without decay of norms and biases, and schedules with a warm-up, one step at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import optimizers

OptimizerName = Literal["auto", "adamw", "fused-adamw"]
ScheduleName = Literal[
    "linear", "cosine", "constant", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]
_ENDLESS = ("constant", "inverse_sqrt")

_NORM_CLASS = re.compile(r"norm(\d+d)?$", re.IGNORECASE)
_NORM_NAME = re.compile(r"(^|_)(layer_?norm|rms_?norm|norm|ln)\d*(_|$)", re.IGNORECASE)


def check_settings(
    optimizer: str,
    schedule: str,
    learning_rate: float,
    weight_decay: float,
    warmup_steps: float,
    betas: Sequence[float] = (0.9, 0.999),
) -> None:
    """Check settings before a run.

    Raises:
        ConfigurationError: One of them cannot be.
    """
    for name, choice, known in (
        ("optimizer", optimizer, get_args(OptimizerName)),
        ("schedule", schedule, get_args(ScheduleName)),
    ):
        if choice not in known:
            raise ConfigurationError(
                f"{name} must be one of {', '.join(map(repr, known))}, but it is {choice!r}."
            )
    for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        if not value >= 0:  # nor NaN
            raise ConfigurationError(f"{name} must be 0 or more, but it is {value}.")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ConfigurationError(
            f"betas must be two numbers of 0 or more and less than 1, but it is {betas!r}."
        )
    if warmup_steps < 0 or (isinstance(warmup_steps, float) and warmup_steps > 1):
        raise ConfigurationError(
            "warmup_steps must be a number of steps (an int), or a fraction of the run's steps "
            f"(a float from 0 to 1), but it is {warmup_steps!r}."
        )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: with decay and without.

    Without decay are biases, and all parameters of modules whose class or name says that they are
    norms or biases. A parameter that is used in several places is in one group, once.

    Args:
        model: The model.
        weight_decay: For the first group.

    Returns:
        Groups that have parameters, with ``params`` and ``weight_decay``.
    """
    kept: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        own_name = path.rpartition(".")[2]
        is_kept = bool(
            _NORM_CLASS.search(type(module).__name__)
            or _NORM_NAME.search(own_name)
            or "bias" in own_name  # of T5's positions, a module
        )
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            (kept if is_kept or "bias" in name else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    model: nn.Module,
    name: str,
    *,
    on_hpu: bool,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
) -> Optimizer:
    """AdamW for a model's trainable parameters.

    Args:
        model: The model.
        name: ``"adamw"``, ``"fused-adamw"``, or ``"auto"``: the latter on an HPU, unless
            parameters are sharded.
        on_hpu: Whether the run is on an HPU.
        learning_rate: The highest learning rate.
        weight_decay: For what is neither norm nor bias.
        betas: The decay of the two moments.
        eps: What is added to the denominator.

    Raises:
        ConfigurationError: There is nothing to train, or the optimizer needs an HPU and parameters
            that are not sharded.
    """
    groups = parameter_groups(model, weight_decay)
    if not groups:
        raise ConfigurationError(
            "nothing to train: no parameter of the model has requires_grad=True."
        )
    settings: dict[str, Any] = {"lr": learning_rate, "betas": tuple(betas), "eps": eps}
    if name == "fused-adamw" and not on_hpu:
        raise ConfigurationError(
            "optimizer='fused-adamw' is the Gaudi software's and needs an HPU. Use "
            "optimizer='auto', which takes it on an HPU and torch.optim.AdamW elsewhere."
        )
    is_sharded = any(isinstance(p, DTensor) for group in groups for p in group["params"])
    if name == "fused-adamw" and is_sharded:
        raise ConfigurationError(
            "optimizer='fused-adamw' is a kernel that does not know sharded parameters. Use "
            "optimizer='auto', which takes torch.optim.AdamW for them."
        )
    if name != "adamw" and on_hpu and not is_sharded:
        return optimizers.fused_adamw(groups, **settings)
    # Not by foreach: there a new learning rate is a new constant, and compiles a graph.
    return torch.optim.AdamW(groups, foreach=False, **settings)


def make_schedule(
    optimizer: Optimizer, name: str, warmup_steps: float, num_steps: float
) -> LRScheduler:
    """A schedule of Transformers', to be stepped after each optimizer step.

    Args:
        optimizer: The optimizer.
        name: The schedule.
        warmup_steps: Steps in which the rate rises from 0, or their fraction of ``num_steps``.
        num_steps: Optimizer steps of the run; infinity where it has no end.

    Raises:
        ConfigurationError: The schedule needs an end, and the run has none.
    """
    from transformers import get_scheduler

    is_fraction = isinstance(warmup_steps, float)
    if math.isinf(num_steps) and (is_fraction or name not in _ENDLESS):
        what = f"warmup_steps={warmup_steps}" if name in _ENDLESS else f"schedule={name!r}"
        raise ConfigurationError(
            f"{what} needs to know how many steps the run has, but it has no end. Set max_steps "
            "or max_epochs of the Trainer, or use schedule='constant' with warmup_steps as an int."
        )
    warmup = math.ceil(warmup_steps * num_steps) if is_fraction else int(warmup_steps)
    if name == "constant":
        name = "constant_with_warmup"
    steps = None if math.isinf(num_steps) else int(num_steps)
    schedule: LRScheduler = get_scheduler(name, optimizer, warmup, steps)
    return schedule
