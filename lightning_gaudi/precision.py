"""`HPUPrecision`: which dtype a module computes in on the HPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from lightning_gaudi.errors import ConfigurationError

HPUPrecisionName = Literal["32-true", "bf16-mixed", "bf16-true"]
PRECISIONS: tuple[str, ...] = get_args(HPUPrecisionName)


class HPUPrecision(Precision):
    """Precision on the HPU.

    Args:
        precision: ``"32-true"`` computes in float32. ``"bf16-mixed"`` keeps float32 weights and
            runs the steps under ``torch.autocast("hpu", dtype=torch.bfloat16)``. ``"bf16-true"``
            turns weights, floating-point inputs and the default dtype of the steps to bfloat16.

    Raises:
        ConfigurationError: Another precision.
    """

    def __init__(self, precision: HPUPrecisionName = "32-true") -> None:
        if precision not in PRECISIONS:
            raise ConfigurationError(
                f"precision must be one of {', '.join(map(repr, PRECISIONS))} on the HPU, but it "
                f"is {precision!r}."
            )
        self.precision = precision

    @override
    def convert_module(self, module: Module) -> Module:
        """With ``"bf16-true"``, turn floating-point weights and buffers to bfloat16."""
        return module.to(torch.bfloat16) if self.precision == "bf16-true" else module

    @override
    def convert_input(self, data: Any) -> Any:
        """With ``"bf16-true"``, turn floating-point tensors of a batch to bfloat16."""
        if self.precision != "bf16-true":
            return data
        return apply_to_collection(data, Tensor, _to_bfloat16)

    @override
    def tensor_init_context(self) -> AbstractContextManager[None]:
        """With ``"bf16-true"``, new tensors are bfloat16."""
        return _default_bfloat16() if self.precision == "bf16-true" else nullcontext()

    @override
    def module_init_context(self) -> AbstractContextManager[None]:
        """With ``"bf16-true"``, new modules are bfloat16."""
        return self.tensor_init_context()

    @override
    def forward_context(self) -> AbstractContextManager[Any]:
        """What a step runs under."""
        if self.precision == "bf16-mixed":
            return torch.autocast("hpu", dtype=torch.bfloat16)
        return self.tensor_init_context()


def for_hpu(plugin: Precision | None) -> Precision | None:
    """The plugin that does on the HPU what Lightning's plugin was chosen to do.

    Lightning builds its own from ``Trainer(precision=...)``, and autocast for CUDA where it does
    not know the accelerator. A plugin of another class is the user's own and stays.

    Raises:
        ConfigurationError: Lightning's plugin stands for a precision that the HPU does not have.
    """
    if plugin is None or isinstance(plugin, HPUPrecision):
        return plugin
    if type(plugin) in (Precision, HalfPrecision, MixedPrecision):
        return HPUPrecision(cast("HPUPrecisionName", plugin.precision))
    if type(plugin).__module__.startswith("lightning.pytorch.plugins.precision"):
        raise ConfigurationError(
            f"precision must be one of {', '.join(map(repr, PRECISIONS))} on the HPU, but "
            f"{plugin.precision!r} ({type(plugin).__name__}) was chosen."
        )
    return plugin


def _to_bfloat16(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


@contextmanager
def _default_bfloat16() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
