"""AdamW, as a card runs it for all parameters of a group at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.step_closures import mark_step_if_lazy

MomentsDtype = torch.dtype | tuple[torch.dtype, torch.dtype] | None


class FusedAdamW(Optimizer):
    """AdamW (bridge 1.19.0, ``OptimizerAdamwOperator`` in ``optimizer_kernels.cpp``).

    A step computes, for a gradient ``g`` of a parameter ``w``::

        w *= 1 - weight_decay * lr                            # before the moments, if it is not 1
        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g**2
        w -= step_size * exp_avg / (sqrt(exp_avg_sq) + eps)
        # step_size = lr * sqrt(1 - beta2**t) / (1 - beta1**t), or lr without bias correction

    Unlike torch.optim.AdamW, ``eps`` is 1e-6 by default and is not scaled by the bias correction,
    ``weight_decay`` is 0 by default, and steps are counted by group. The step size, and with it the
    learning rate, reaches the device as a tensor in the parameters' dtype, so a schedule compiles
    nothing. The pending graph is marked before each group and after the step.

    Args:
        params: Parameters, or groups of them.
        lr: The learning rate.
        betas: The decay of the two moments.
        eps: What is added to the denominator.
        weight_decay: The decay of the parameters.
        bias_correction: Whether the moments of the first steps are corrected.
        moments_dtype: The dtype of the moments, or of the two; the parameter's by default.

    Raises:
        NotImplementedError: Moments in 8 bits.
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        moments_dtype: MomentsDtype = None,
    ) -> None:
        if lr < 0.0:
            raise ValueError(f"Invalid learning rate: {lr} - should be >= 0.0")
        for beta in betas:
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter: {beta} - should be in [0.0, 1.0[")
        if eps < 0.0:
            raise ValueError(f"Invalid epsilon value: {eps} - should be >= 0.0")
        self.moments_dtype = moments_dtype
        for dtype in moments_dtype if isinstance(moments_dtype, tuple) else (moments_dtype,):
            if dtype is not None and dtype.itemsize == 1:
                raise NotImplementedError(
                    f"the emulated HPU's FusedAdamW has no moments in {dtype}: use bfloat16."
                )
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "bias_correction": bias_correction,
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
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        group["step"] = group.get("step", 0) + 1
        beta1, beta2 = group["betas"]
        step_size = group["lr"]
        # Groups of torch.optim.AdamW say nothing of it, older ones of the SDK's call it otherwise.
        if group.get("bias_correction", group.get("correct_bias", True)):
            step_size *= math.sqrt(1 - beta2 ** group["step"]) / (1 - beta1 ** group["step"])
        weights = parameters[0]
        negative_step = _scalar(-step_size, weights.dtype, weights)
        remaining = 1.0 - group["weight_decay"] * group["lr"]
        # The one number, too, that a schedule changes: a tensor on the card, read from a cache.
        decay = None if remaining == 1.0 else _scalar(remaining, torch.float32, weights)
        for p in parameters:
            exp_avg, exp_avg_sq = self._moments(p)
            if decay is not None:
                p.mul_(decay)
            exp_avg.mul_(beta1).add_(p.grad, alpha=1 - beta1)
            exp_avg_sq.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            p.add_(exp_avg / (exp_avg_sq.sqrt() + group["eps"]) * negative_step)

    def _moments(self, p: Tensor) -> tuple[Tensor, Tensor]:
        assert p.grad is not None
        if p.grad.is_sparse:
            raise RuntimeError("Adam does not support sparse gradients, please consider SparseAdam")
        state = self.state[p]
        if not state:
            dtypes = self.moments_dtype or p.dtype
            first, second = dtypes if isinstance(dtypes, tuple) else (dtypes, dtypes)
            state["step"] = 0
            state["exp_avg"] = torch.zeros(p.shape, dtype=first).to(p.device)
            state["exp_avg_sq"] = torch.zeros(p.shape, dtype=second).to(p.device)
        return state["exp_avg"], state["exp_avg_sq"]


def _scalar(value: float, dtype: torch.dtype, like: Tensor) -> Tensor:
    """A number as a tensor of shape (1,) beside another one."""
    return torch.tensor([value], dtype=torch.float32).to(dtype).to(like.device, non_blocking=True)


__all__ = ["FusedAdamW"]
__getattr__ = name_missing("habana_frameworks.torch.hpex.optimizers.FusedAdamW")
