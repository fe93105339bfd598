"""PyTorch Lightning on Intel Gaudi, and on an emulated HPU where there is no card.

Importing this package registers ``accelerator="hpu"`` and the strategies with Lightning: with the
Trainer and with Fabric. It loads no Gaudi software. With ``LIGHTNING_GAUDI_EMULATOR=1`` in the
environment it installs the emulated HPU.
"""

import typing

from lightning_gaudi.runtime.loading import install_emulator_if_requested

install_emulator_if_requested()

# Bound here, since it may have been imported before this package was (lightning_gaudi_autoload).
from lightning_gaudi import emulator as emulator  # noqa: E402
from lightning_gaudi.accelerator import HPUAccelerator  # noqa: E402
from lightning_gaudi.callbacks import (  # noqa: E402
    CompileMonitor,
    FiniteLoss,
    HPUGraphCallback,
    HPUThroughputMonitor,
    PredictionOrder,
)
from lightning_gaudi.checkpoint import HPUCheckpointIO  # noqa: E402
from lightning_gaudi.fabric.registration import register as register_with_fabric  # noqa: E402
from lightning_gaudi.fsdp import GaudiFSDPStrategy  # noqa: E402
from lightning_gaudi.precision import HPUPrecision  # noqa: E402
from lightning_gaudi.profiler import HPUProfiler  # noqa: E402
from lightning_gaudi.registration import register  # noqa: E402
from lightning_gaudi.strategy import GaudiStrategy  # noqa: E402

register()
register_with_fabric()
del install_emulator_if_requested, register, register_with_fabric

if not typing.TYPE_CHECKING:  # type checkers would take every name

    def __getattr__(name: str) -> object:
        from lightning_gaudi.moving_over import class_named

        return class_named(name)


__all__ = [
    "CompileMonitor",
    "FiniteLoss",
    "GaudiFSDPStrategy",
    "GaudiStrategy",
    "HPUAccelerator",
    "HPUCheckpointIO",
    "HPUGraphCallback",
    "HPUPrecision",
    "HPUProfiler",
    "HPUThroughputMonitor",
    "PredictionOrder",
]
