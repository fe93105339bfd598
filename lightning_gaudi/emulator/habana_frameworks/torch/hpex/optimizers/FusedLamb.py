"""LAMB, as a card runs it for all parameters of a group at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.step_closures import mark_step_if_lazy


class FusedLamb(Optimizer):
    """LAMB (arXiv 1904.00962; bridge 1.19.0, ``optimizer_lamb.cpp`` and its tests).

    A step first divides all gradients by ``max(1, norm / max_grad_norm)``, their norm being that of
    all groups, and then computes for each gradient ``g`` of a parameter ``w``::

        exp_avg = beta1 * exp_avg + beta3 * g       # beta3 = 1 - beta1, or 1 without averaging
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g**2
        change = corrected(exp_avg) / (sqrt(corrected(exp_avg_sq)) + eps) + weight_decay * w
        w -= lr * change * norm(w) / norm(change)

    The last factor is 1 where one of the norms is 0, and in groups without weight decay unless
    `use_lamb`. Numbers that change reach the device as tensors, so a schedule compiles nothing. The
    pending graph is marked before, between and after the two halves.

    Args:
        params: Parameters, or groups of them.
        lr: The learning rate.
        bias_correction: Whether the moments of the first steps are corrected.
        betas: The decay of the two moments.
        eps: What is added to the denominator.
        weight_decay: The decay of the parameters.
        amsgrad: Must be False.
        adam_w_mode: Ignored, as the SDK does.
        grad_averaging: Whether the first moment takes ``1 - beta1`` of a gradient, not all of it.
        set_grad_none: Whether `zero_grad` sets gradients to None.
        max_grad_norm: The greatest norm of all gradients; None for any.
        use_lamb: Whether groups without weight decay are scaled by the norms, too.
        fused: Ignored, as the SDK does.
        dtype: What the gradients' norm is computed in; their own dtype by default.

    Raises:
        RuntimeError: `amsgrad` is set.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        adam_w_mode: bool = True,
        grad_averaging: bool = True,
        set_grad_none: bool = True,
        max_grad_norm: float | None = 1.0,
        use_lamb: bool = False,
        fused: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        if amsgrad:
            raise RuntimeError("FusedLamb does not support the AMSGrad variant.")
        self.set_grad_none = set_grad_none
        self.use_lamb = use_lamb
        self.dtype = dtype
        super().__init__(
            params,
            {
                "lr": lr,
                "bias_correction": bias_correction,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "grad_averaging": grad_averaging,
                "max_grad_norm": max_grad_norm,
            },
        )

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        """Forget the gradients, or fill them with 0 if the constructor was told so."""
        super().zero_grad(self.set_grad_none if set_to_none is None else set_to_none)

    def step(  # type: ignore[override]  # the SDK returns nothing
        self, closure: Callable[[], Any] | None = None
    ) -> None:
        """Update the parameters that have a gradient.

        Args:
            closure: Computes the loss once more, with gradients; what it returns is dropped.

        Raises:
            RuntimeError: A gradient is sparse.
        """
        if closure is not None:
            closure()
        with torch.no_grad():
            divisor = self._divisor()
            for group in self.param_groups:
                mark_step_if_lazy()
                changes = self._changes(group, divisor)
                mark_step_if_lazy()
                self._apply(group, changes)
                mark_step_if_lazy()

    def _divisor(self) -> Tensor:
        """What all gradients are divided by, of shape (1,)."""
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        present = [gradient for gradient in gradients if gradient is not None]
        if any(gradient.is_sparse for gradient in present):
            raise RuntimeError(
                "Lamb does not support sparse gradients, consider SparseAdam instead."
            )
        max_norm = self.defaults["max_grad_norm"]
        if max_norm is None or not present:
            return _scalar(1.0)
        norms = [torch.linalg.vector_norm(g.to(self.dtype or g.dtype)) for g in present]
        norm = torch.linalg.vector_norm(torch.stack(norms)).reshape(1)
        return torch.where(norm > max_norm, norm / max_norm, torch.ones_like(norm))

    def _changes(self, group: dict[str, Any], divisor: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Parameters with how they would change, before the learning rate."""
        group["step"] = group.get("step", 0) + 1
        beta1, beta2 = group["betas"]
        beta3 = 1 - beta1 if group["grad_averaging"] else 1.0
        has_correction = group["bias_correction"]
        correction1, correction2 = (
            _scalar(1.0 - beta ** group["step"] if has_correction else 1.0)
            for beta in (beta1, beta2)
        )
        changes = []
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["exp_avg"] = torch.zeros(p.shape).to(p.device).to(p.dtype)
                state["exp_avg_sq"] = torch.zeros(p.shape).to(p.device).to(p.dtype)
            gradient = p.grad / divisor
            exp_avg = state["exp_avg"].mul_(beta1).add_(gradient, alpha=beta3)
            exp_avg_sq = state["exp_avg_sq"].mul_(beta2)
            exp_avg_sq.addcmul_(gradient, gradient, value=1 - beta2)
            change = (exp_avg / correction1) / ((exp_avg_sq / correction2).sqrt() + group["eps"])
            if group["weight_decay"]:
                change = change + p * group["weight_decay"]
            changes.append((p, change))
        return changes

    def _apply(self, group: dict[str, Any], changes: list[tuple[Tensor, Tensor]]) -> None:
        negative_lr = _scalar(-group["lr"])
        for p, change in changes:
            if group["weight_decay"] or self.use_lamb:
                norm, change_norm = (torch.linalg.vector_norm(t) for t in (p, change))
                ratio = torch.where(
                    (norm > 0) & (change_norm > 0), norm / change_norm, torch.ones_like(norm)
                )
                change = change * ratio
            p.add_(change * negative_lr)


def _scalar(value: float) -> Tensor:
    """A number as a tensor of shape (1,) on the device."""
    return torch.tensor([value]).to("hpu", non_blocking=True)


__all__ = ["FusedLamb"]
__getattr__ = name_missing("habana_frameworks.torch.hpex.optimizers.FusedLamb")
