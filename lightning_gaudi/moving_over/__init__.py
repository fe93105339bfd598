"""The names of ``lightning-habana``, for scripts that were written for it.

``from lightning_gaudi import HPUDDPStrategy`` gives a class that takes the arguments it took there
and does here what was meant. The first use of each says what the name is in this package; it goes
on working. `HPUAccelerator`, `HPUCheckpointIO` and `HPUProfiler` kept their names and are not here.

What there is no equal of raises when it is used, not when it is imported, so that a script's
imports can stay as they are. ``docs/moving-over.md`` has the whole table.
"""

from __future__ import annotations

from lightning.pytorch.strategies import Strategy

from lightning_gaudi.moving_over.precision import HPUFSDPPrecision, HPUPrecisionPlugin
from lightning_gaudi.moving_over.refused import (
    HPUDataModule,
    HPUDeepSpeedPrecisionPlugin,
    HPUDeepSpeedStrategy,
)
from lightning_gaudi.moving_over.sharding import HPUFSDPStrategy
from lightning_gaudi.moving_over.strategies import (
    HPUDDPStrategy,
    HPUParallelStrategy,
    SingleHPUStrategy,
)

_CLASSES: tuple[type, ...] = (
    HPUDDPStrategy,
    HPUDataModule,
    HPUDeepSpeedPrecisionPlugin,
    HPUDeepSpeedStrategy,
    HPUFSDPPrecision,
    HPUFSDPStrategy,
    HPUParallelStrategy,
    HPUPrecisionPlugin,
    SingleHPUStrategy,
)
NAMES: dict[str, type] = {found.__name__: found for found in _CLASSES}
"""The class names of ``lightning-habana`` that ``lightning_gaudi`` answers to."""

STRATEGIES: dict[str, type[Strategy]] = {
    "hpu_ddp": HPUDDPStrategy,
    "hpu_deepspeed": HPUDeepSpeedStrategy,
    "hpu_fsdp": HPUFSDPStrategy,
    "hpu_parallel": HPUParallelStrategy,
    "hpu_single": SingleHPUStrategy,
}
"""Its registry names, with what they stand for."""


def class_named(name: str) -> type:
    """The class that has one of `NAMES`; what ``lightning_gaudi`` looks names up with.

    Raises:
        AttributeError: It is none of them.
    """
    if name not in NAMES:
        raise AttributeError(f"module 'lightning_gaudi' has no attribute {name!r}")
    return NAMES[name]
