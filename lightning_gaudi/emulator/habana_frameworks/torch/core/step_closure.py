"""``habana_frameworks.torch.core.step_closure``."""

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.step_closures import (
    add_step_closure,
    iter_mark_step,
    mark_step,
)
from lightning_gaudi.emulator.step_closures import mark_step_if_lazy as _mark_step_if_lazy

__all__ = ["_mark_step_if_lazy", "add_step_closure", "iter_mark_step", "mark_step"]
__getattr__ = name_missing("habana_frameworks.torch.core.step_closure")
