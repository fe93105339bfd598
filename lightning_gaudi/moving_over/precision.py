"""Precision plugins of ``lightning-habana``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn import Module

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.moving_over.hints import hint
from lightning_gaudi.precision import HPUPrecision

_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}


class HPUPrecisionPlugin(HPUPrecision):
    """`HPUPrecision` under the name and with the arguments of ``lightning-habana``.

    Args:
        precision: As of `HPUPrecision`; also ``"32"`` and ``"bf16"``, for ``"32-true"`` and
            ``"bf16-mixed"``.
        device: Of autocast; ``"hpu"``.
        recipe: For ``"fp8"``, as of `HPUPrecision`.
        replace_layers: For ``"fp8"``, as of `HPUPrecision`; without it layers stay as they are.
        **gaudi: Further arguments of `HPUPrecision`.

    Raises:
        ConfigurationError: The device is another one, or `HPUPrecision` raises it.
    """

    _hint = ("HPUPrecisionPlugin", "HPUPrecision")

    def __init__(
        self,
        precision: Any = "32-true",
        device: str = "hpu",
        recipe: Any | Mapping[str, Any] | None = None,
        replace_layers: bool = False,
        **gaudi: Any,
    ) -> None:
        hint(*self._hint)
        if device != "hpu":
            raise ConfigurationError(
                f"{type(self).__name__} is for device 'hpu', but device is {device!r}. Leave it "
                "out."
            )
        super().__init__(
            _PRECISIONS.get(precision, precision),
            recipe=recipe,
            # There its value meant nothing in other precisions, and False was the default.
            replace_layers=replace_layers if precision == "fp8" else None,
            **gaudi,
        )

    def convert_modules(
        self,
        module: Module,
        inference: bool = False,
        replace_layers: bool = False,
        recipe: Any | Mapping[str, Any] | None = None,
        quant: bool = True,
        fp8_data_path: str | None = None,
    ) -> Module:
        """Prepare a module for fp8 training, before the strategy would do so.

        Args:
            module: The module. Its linear layers are replaced in place.
            inference: Must be False: fp8 inference is not done here.
            replace_layers: Whether linear layers are replaced; they keep their weights.
            recipe: As of `HPUPrecision`; None keeps that of the constructor.
            quant: Of fp8 inference.
            fp8_data_path: Of fp8 inference.

        Returns:
            The module.

        Raises:
            ConfigurationError: The precision is not ``"fp8"``, or inference is asked for.
        """
        if self.precision != "fp8":
            raise ConfigurationError(
                "convert_modules is for precision='fp8', but the precision is "
                f"{self.precision!r}. Leave the call out: the strategy converts the module."
            )
        if inference:
            raise ConfigurationError(
                "convert_modules(inference=True) measures and quantizes a module for fp8 "
                "inference, which lightning_gaudi does not do. Quantize the module yourself with "
                "Intel Neural Compressor before you give it to the Trainer, or use "
                "precision='bf16-true'."
            )
        if recipe is not None:
            self._recipe = recipe
        self._replace_layers = replace_layers
        return self.convert_module(module)


class HPUFSDPPrecision(HPUPrecisionPlugin):
    """The same as `HPUPrecisionPlugin`: sharded modules take the same plugin here."""

    _hint = ("HPUFSDPPrecision", "HPUPrecision")
