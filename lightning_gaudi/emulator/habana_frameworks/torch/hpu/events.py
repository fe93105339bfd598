"""``habana_frameworks.torch.hpu.events``."""

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.streams import Event

__all__ = ["Event"]
__getattr__ = name_missing("habana_frameworks.torch.hpu.events")
