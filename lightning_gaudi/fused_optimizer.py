"""Torch's AdamW as the Gaudi software's `FusedAdamW`, where a LightningModule has made the former.

The new optimizer takes the place of the old one in the Trainer. The old one stays as what the
learning-rate schedules hold: both have the same parameter groups, so a schedule changes the rate of
the new one.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_gaudi.runtime.optimizers import fused_adamw, is_fused_adamw

_SHARED = ("params", "lr", "betas", "eps", "weight_decay")
_TORCHS_OWN = (
    "amsgrad",
    "maximize",
    "foreach",
    "capturable",
    "differentiable",
    "fused",
    "decoupled_weight_decay",
)


def fuse(optimizer: Optimizer) -> Optimizer:
    """The fused optimizer that steps as a given one does.

    `torch.optim.AdamW` and, without weight decay, `torch.optim.Adam` become `FusedAdamW` with the
    same hyperparameters and parameter groups. `FusedAdamW` adds ``eps`` at another place, so that
    weights agree closely and not bit for bit. Its state can be loaded from a checkpoint of torch's.

    Args:
        optimizer: The optimizer, before its first step. Schedules may hold it.

    Returns:
        The fused one, or the given one, with a warning, where there is no fused one like it.
    """
    if is_fused_adamw(optimizer):
        return optimizer
    if obstacle := _obstacle(optimizer):
        rank_zero_warn(
            f"the Gaudi configuration asks for the fused Adam, but {type(optimizer).__name__} "
            f"{obstacle}: it stays as it is. FusedAdamW can stand for torch.optim.AdamW, and for "
            "torch.optim.Adam without weight decay."
        )
        return optimizer
    groups = [
        {name: value for name, value in group.items() if name not in _TORCHS_OWN}
        for group in optimizer.param_groups
    ]
    settings = {name: optimizer.defaults[name] for name in _SHARED[1:]}
    fused = fused_adamw(groups, **settings)
    _follow(optimizer, fused)
    rank_zero_info(f"{type(optimizer).__name__} runs as FusedAdamW, with the same hyperparameters.")
    return fused


def _obstacle(optimizer: Optimizer) -> str:
    """Why there is no fused optimizer like this one; empty where there is."""
    if type(optimizer) not in (torch.optim.AdamW, torch.optim.Adam):
        return "is another optimizer"
    if optimizer.state:
        return "has stepped already"
    for group in optimizer.param_groups:
        for name in ("amsgrad", "maximize", "differentiable"):
            if group[name]:
                return f"has {name}=True"
        if any(isinstance(group[name], Tensor) for name in ("lr", "eps", "weight_decay")):
            return "has a tensor as a hyperparameter"
        # Its class says so, or from torch 2.7 on a setting of each group.
        is_decoupled = type(optimizer) is torch.optim.AdamW or group.get("decoupled_weight_decay")
        if group["weight_decay"] and not is_decoupled:
            return "adds its weight decay to the gradients"
    return ""


def _follow(optimizer: Optimizer, fused: Optimizer) -> None:
    """Let schedules that hold the old optimizer work on the new one."""
    optimizer.param_groups = fused.param_groups

    def after_load(_: Optimizer) -> None:
        # Loading makes new groups. Those of torch's AdamW count their steps by parameter.
        for group in fused.param_groups:
            steps = [fused.state[p].get("step", 0) for p in group["params"] if p in fused.state]
            if "step" not in group and steps:
                group["step"] = int(max(steps))
            group.setdefault("bias_correction", True)
        optimizer.param_groups = fused.param_groups

    def after_first_step(*_: Any) -> None:
        # A schedule warns unless its optimizer has stepped before it. Without groups that does
        # nothing else.
        optimizer.param_groups = []
        try:
            optimizer.step()
        finally:
            optimizer.param_groups = fused.param_groups
            handle.remove()

    fused.register_load_state_dict_post_hook(after_load)
    handle = fused.register_step_post_hook(after_first_step)
