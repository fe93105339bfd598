"""``habana_frameworks.torch.utils.internal``."""

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.mode import is_lazy

__all__ = ["is_lazy"]
__getattr__ = name_missing("habana_frameworks.torch.utils.internal")
