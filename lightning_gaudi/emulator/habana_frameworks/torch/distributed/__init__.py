"""``habana_frameworks.torch.distributed``."""

from lightning_gaudi.emulator.missing import name_missing

__getattr__ = name_missing("habana_frameworks.torch.distributed")
