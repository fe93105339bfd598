"""``habana_frameworks.torch.utils``."""

from habana_frameworks.torch.utils import internal

from lightning_gaudi.emulator.missing import name_missing

__all__ = ["internal"]
__getattr__ = name_missing("habana_frameworks.torch.utils")
