"""Stochastic gradient descent, as a card runs it for all parameters of a group at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.step_closures import mark_step_if_lazy


class FusedSGD(Optimizer):
    """torch.optim.SGD's steps (bridge 1.19.0, ``hpex/optimizers/FusedSGD.py``).

    The learning rate and the momentum reach the device as tensors, so a schedule compiles nothing.
    The pending graph is marked before and after each group.

    Args:
        params: Parameters, or groups of them.
        lr: The learning rate.
        momentum: The decay of the momentum; 0 for none.
        weight_decay: What part of the parameters is added to their gradients.
        dampening: Must be 0: public sources do not say what a card does with another.
        nesterov: Whether momentum is Nesterov's.

    Raises:
        NotImplementedError: `dampening` is not 0.
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0,
        weight_decay: float = 0,
        dampening: float = 0,
        nesterov: bool = False,
    ) -> None:
        for name, value in (
            ("learning rate", lr),
            ("momentum value", momentum),
            ("weight_decay value", weight_decay),
            ("dampening value", dampening),
        ):
            if value < 0.0:
                raise ValueError(f"Invalid {name}: {value}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        if dampening != 0:
            raise NotImplementedError("the emulated HPU's FusedSGD has no dampening: leave it 0.")
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "dampening": dampening,
                "nesterov": nesterov,
            },
        )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient.

        Args:
            closure: Computes the loss once more, with gradients.

        Returns:
            What the closure returns; None without one.

        Raises:
            RuntimeError: A gradient is sparse.
        """
        loss = None if closure is None else closure()
        for group in self.param_groups:
            mark_step_if_lazy()
            with torch.no_grad():
                self._step_group(group)
            mark_step_if_lazy()
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        lr = torch.tensor([group["lr"]], dtype=torch.float32).to("hpu", non_blocking=True)
        momentum = None
        if group["momentum"]:
            momentum = torch.tensor([group["momentum"]]).to("hpu", non_blocking=True)
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError(
                    "SGD does not support sparse gradients, please consider SparseSGD"
                )
            change: Tensor = p.grad
            if group["weight_decay"]:
                change = change + p * group["weight_decay"]
            if momentum is not None:
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros(p.shape).to("hpu", non_blocking=True)
                buffer = state["momentum_buffer"]
                buffer.mul_(momentum).add_(change)
                change = change + buffer * momentum if group["nesterov"] else buffer
            p.sub_(change * lr)


__all__ = ["FusedSGD"]
__getattr__ = name_missing("habana_frameworks.torch.hpex.optimizers.FusedSGD")
