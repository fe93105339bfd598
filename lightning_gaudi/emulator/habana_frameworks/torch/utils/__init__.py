"""``habana_frameworks.torch.utils``."""

from habana_frameworks.torch.utils import experimental, internal

from lightning_gaudi.emulator.missing import name_missing

__all__ = ["experimental", "internal"]
__getattr__ = name_missing("habana_frameworks.torch.utils")
