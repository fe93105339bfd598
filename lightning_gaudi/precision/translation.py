"""Lightning's precision plugins, translated for the HPU."""

from __future__ import annotations

from typing import cast

import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.precision.plugin import PRECISIONS, HPUPrecision, HPUPrecisionName
from lightning_gaudi.precision.scaler import HPUGradScaler


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
        name = cast("HPUPrecisionName", plugin.precision)
        return HPUPrecision(name, scaler=_scaler_like(getattr(plugin, "scaler", None)))
    if type(plugin).__module__.startswith("lightning.pytorch.plugins.precision"):
        raise ConfigurationError(
            f"precision must be one of {', '.join(map(repr, PRECISIONS))} on the HPU, but "
            f"{plugin.precision!r} ({type(plugin).__name__}) was chosen."
        )
    return plugin


def _scaler_like(scaler: torch.amp.GradScaler | None) -> HPUGradScaler | None:
    """A scaler for the HPU with the settings of another one, which may be for another device."""
    # Without CUDA, one for CUDA is disabled and has no state; it is the default one, too.
    state = scaler.state_dict() if scaler is not None else {}
    if not state:
        return None
    ours = HPUGradScaler()
    ours.load_state_dict(state)
    return ours
