"""`HPUGradScaler`: dynamic loss scaling for float16 on the HPU, with one host read a step.

``torch.amp.GradScaler`` uses two ops that have no kernel on the card
(``_amp_foreach_non_finite_check_and_unscale_`` and ``_amp_update_scale_``, hpu_ops.tsv): every step
it would copy all gradients to the host and back. It also keeps the scale on the device. Here the
gradients are checked by ordinary ops. Whether to step must be known on the host anyway, so the
scale is a number there, and costs no second read. A number that multiplies a tensor is no constant
of the recipe (HABANA.md, "Lazy mode"), so a new scale compiles nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

Outputs = TypeVar("Outputs")

_LARGEST = torch.finfo(torch.float32).max


class HPUGradScaler(torch.amp.GradScaler):
    """Scales the loss so that float16 gradients do not underflow, and skips steps that overflow.

    It steps, skips and changes its scale as ``torch.amp.GradScaler`` does, and their states can be
    exchanged. `step` reads one value from the device (whether all gradients are finite); nothing
    else does. Where autocast lowers the loss's last op (``mean``, ``mul``), the loss's gradient is
    float16, which 2**16 overflows: the first step is skipped then, and the scale halved.

    Args:
        init_scale: The first scale.
        growth_factor: What the scale is multiplied by after ``growth_interval`` steps in a row
            without overflow.
        backoff_factor: What it is multiplied by after an overflow.
        growth_interval: Steps in a row without overflow before the scale grows.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ) -> None:
        super().__init__("hpu", init_scale, growth_factor, backoff_factor, growth_interval)
        self._current_scale = float(init_scale)
        self._num_steps_without_overflow = 0
        # By optimizer's id, until the next update: whether its gradients are finite, on the device
        # first and then, once read, on the host.
        self._are_finite: dict[int, Tensor | bool] = {}
        self._stepped: set[int] = set()

    @override
    def scale(self, outputs: Any) -> Any:
        """Multiply losses by the scale.

        Args:
            outputs: A tensor, or an iterable of them in lists and tuples.

        Returns:
            New tensors in the same structure. One of no dimension is at least float32, since a
            scaled float16 loss would overflow.
        """
        if isinstance(outputs, Tensor):
            is_half = outputs.dtype in (torch.float16, torch.bfloat16)
            return (outputs.float() if is_half and not outputs.dim() else outputs) * (
                self._current_scale
            )
        if isinstance(outputs, Iterable):
            scaled = map(self.scale, outputs)
            return type(outputs)(scaled) if isinstance(outputs, (list, tuple)) else scaled
        raise ValueError(
            f"outputs must be a tensor or an iterable of tensors, but it is {type(outputs)}."
        )

    @override
    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of an optimizer's parameters by the scale, in place.

        Raises:
            RuntimeError: They are unscaled already, the optimizer has stepped since the last
                update, or they are shards.
            ValueError: They are float16: only float32 weights can be scaled for.
        """
        key = id(optimizer)
        if key in self._stepped:
            raise RuntimeError("unscale_() is being called after step().")
        if key in self._are_finite:
            raise RuntimeError(
                "unscale_() has already been called on this optimizer since the last update()."
            )
        # Exact, as long as the scale is a power of 2.
        inverse = 1.0 / self._current_scale
        flags = []
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    gradient = parameter.grad
                    if gradient is None:
                        continue
                    if gradient.dtype == torch.float16:
                        raise ValueError(
                            "attempting to unscale float16 gradients: loss scaling is for float32 "
                            "weights. Use precision='16-mixed' and leave the weights in float32."
                        )
                    if hasattr(gradient, "to_local"):
                        raise RuntimeError(
                            "loss scaling does not know of sharded gradients: each card would "
                            "decide for itself whether to step. Use precision='bf16-mixed'."
                        )
                    gradient.mul_(inverse)
                    flags.append(torch.isfinite(gradient).all())
            self._are_finite[key] = torch.stack(flags).all() if flags else True

    def unscale_once(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale unless they are already."""
        if id(optimizer) not in self._are_finite:
            self.unscale_(optimizer)

    @override
    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Step an optimizer if all its gradients are finite. Reads one value from the device.

        Returns:
            What the optimizer's step returns; None where it was skipped.

        Raises:
            RuntimeError: It has stepped since the last update, or a closure is given.
        """
        if "closure" in kwargs:
            raise RuntimeError("a step with loss scaling takes no closure.")
        if id(optimizer) in self._stepped:
            raise RuntimeError("step() has already been called since the last update().")
        self.unscale_once(optimizer)
        is_finite = self._read(id(optimizer))
        self._stepped.add(id(optimizer))
        return optimizer.step(*args, **kwargs) if is_finite else None

    @override
    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Choose the next scale, after all optimizers have stepped.

        Args:
            new_scale: The scale to go on with; None chooses by what the steps have found.

        Raises:
            RuntimeError: Nothing was stepped or unscaled.
        """
        if new_scale is not None:
            self._current_scale = float(new_scale)
        else:
            if not self._are_finite:
                raise RuntimeError(
                    "update() needs a step() or unscale_() before it; there was none."
                )
            self._adapt(all(self._read(key) for key in self._are_finite))
        self._are_finite.clear()
        self._stepped.clear()

    def _read(self, key: int) -> bool:
        """Whether an optimizer's gradients are finite: a host read, the first time it is asked."""
        self._are_finite[key] = is_finite = bool(self._are_finite[key])
        return is_finite

    def _adapt(self, is_finite: bool) -> None:
        if not is_finite:
            self._current_scale *= self.get_backoff_factor()
            self._num_steps_without_overflow = 0
            return
        self._num_steps_without_overflow += 1
        if self._num_steps_without_overflow == self.get_growth_interval():
            self._num_steps_without_overflow = 0
            grown = self._current_scale * self.get_growth_factor()
            if grown <= _LARGEST and math.isfinite(grown):
                self._current_scale = grown

    @override
    def get_scale(self) -> float:
        """The scale; reads nothing from the device."""
        return self._current_scale

    @override
    def state_dict(self) -> dict[str, Any]:
        """The state, in the form of ``torch.amp.GradScaler``."""
        return {
            "scale": self._current_scale,
            "growth_factor": self.get_growth_factor(),
            "backoff_factor": self.get_backoff_factor(),
            "growth_interval": self.get_growth_interval(),
            "_growth_tracker": self._num_steps_without_overflow,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, of this class or of ``torch.amp.GradScaler``.

        Raises:
            RuntimeError: The state is empty: it is of a scaler that was turned off.
        """
        if not state_dict:
            raise RuntimeError(
                "the state of the loss scaler is empty, as that of a disabled one is. Start from "
                "the weights alone, or use the precision that the checkpoint was written with."
            )
        self._current_scale = float(state_dict["scale"])
        self.set_growth_factor(state_dict["growth_factor"])
        self.set_backoff_factor(state_dict["backoff_factor"])
        self.set_growth_interval(state_dict["growth_interval"])
        self._num_steps_without_overflow = int(state_dict["_growth_tracker"])
