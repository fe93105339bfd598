"""`HPUFabricPrecision`: `HPUPrecision` as Fabric's loops need it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.fabric.plugins import HalfPrecision, MixedPrecision, Precision
from lightning.fabric.utilities.types import Optimizable
from lightning.pytorch.plugins.precision import Precision as TrainerPrecision
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from typing_extensions import override

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.precision import HPUPrecision

# What Fabric turns a module's inputs to; its outputs it turns back to the default dtype.
_INPUT_DTYPES = {
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "16-mixed": torch.float16,
    "16-true": torch.float16,
}


class HPUFabricPrecision(Precision):
    """Precision of the modules that Fabric has set up, on the HPU.

    A module's forward runs under `HPUPrecision`'s context. As in Fabric's own plugins, with 16 bits
    the floating-point tensors among its arguments become 16-bit, and those among its results get
    the default dtype back.

    Args:
        precision: A name that `HPUPrecision` knows, or one of its instances.

    Attributes:
        inner: The `HPUPrecision`.

    Raises:
        ConfigurationError: The HPU does not have this precision.
    """

    def __init__(self, precision: Any = "32-true") -> None:
        self.inner = precision if isinstance(precision, HPUPrecision) else HPUPrecision(precision)
        self.precision = self.inner.precision
        self._input_dtype = _INPUT_DTYPES.get(str(self.precision))
        scaler = getattr(self.inner, "scaler", None)
        # Loss scaling is the same on every device.
        self._scaling: Precision = (
            Precision() if scaler is None else MixedPrecision("16-mixed", "hpu", scaler)
        )

    @override
    def convert_module(self, module: Module) -> Module:
        """Turn weights and buffers to what the precision keeps them in."""
        return self.inner.convert_module(module)

    @override
    def convert_input(self, data: Any) -> Any:
        """Turn floating-point tensors of a forward's arguments to the dtype it computes in."""
        if self._input_dtype is None:
            return self.inner.convert_input(data)
        return _convert(data, self._input_dtype)

    @override
    def convert_output(self, data: Any) -> Any:
        """Turn floating-point tensors of a forward's results to the default dtype."""
        if self._input_dtype is None:
            return self.inner.convert_output(data)
        return _convert(data, torch.get_default_dtype())

    @override
    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """The dtype of new tensors."""
        return self.inner.tensor_init_context()

    @override
    def module_init_context(self) -> AbstractContextManager[Any]:
        """The dtype of new modules' weights."""
        return self.inner.module_init_context()

    @override
    def forward_context(self) -> AbstractContextManager[Any]:
        """What a forward, and the code under ``fabric.autocast()``, runs under."""
        return self.inner.forward_context()

    @override
    def backward(self, tensor: Tensor, model: Module | None, *args: Any, **kwargs: Any) -> None:
        """Run the backward of a loss, scaled where the precision needs it."""
        self._scaling.backward(tensor, model, *args, **kwargs)

    @override
    def optimizer_step(self, optimizer: Optimizable, **kwargs: Any) -> Any:
        """Run the optimizer's step; with a scaler, unless a gradient is infinite or NaN."""
        return self._scaling.optimizer_step(optimizer, **kwargs)

    @override
    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Undo the loss's scaling before gradients are clipped."""
        self._scaling.unscale_gradients(optimizer)

    @override
    def state_dict(self) -> dict[str, Any]:
        """What the precision has to remember: a loss scaler's state, for one."""
        return dict(self.inner.state_dict())

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what `state_dict` has returned, in the same precision."""
        self.inner.load_state_dict(state_dict)


def for_fabric(plugin: Precision | None) -> Precision | None:
    """The plugin that does in Fabric, on the HPU, what a given one stands for.

    `HPUPrecision` and Lightning's plain names are translated. A plugin of another class is the
    user's own and stays.

    Raises:
        ConfigurationError: It is one of Lightning's for another device, for a precision that the
            HPU does not have, or for the Trainer.
    """
    if plugin is None or isinstance(plugin, HPUFabricPrecision):
        return plugin
    if isinstance(plugin, HPUPrecision):
        return HPUFabricPrecision(plugin)
    if type(plugin) is HalfPrecision:
        return HPUFabricPrecision(plugin.precision)
    is_mixed = isinstance(plugin, MixedPrecision)
    if type(plugin) is Precision or (is_mixed and getattr(plugin, "device", None) == "hpu"):
        return plugin
    is_lightnings = type(plugin).__module__.startswith("lightning.fabric.plugins.precision")
    if is_lightnings or isinstance(plugin, TrainerPrecision):
        raise ConfigurationError(
            f"{type(plugin).__name__} is a precision plugin for another device or for the "
            "Trainer. On the HPU say Fabric(precision='bf16-mixed'), or "
            "plugins=HPUFabricPrecision('bf16-mixed')."
        )
    return plugin


def _convert(data: Any, dtype: torch.dtype) -> Any:
    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return apply_to_collection(data, Tensor, convert)
