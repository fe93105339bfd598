"""``habana_frameworks.torch.hpex.optimizers``."""

from habana_frameworks.torch.hpex.optimizers.FusedAdamW import FusedAdamW
from habana_frameworks.torch.hpex.optimizers.FusedLamb import FusedLamb
from habana_frameworks.torch.hpex.optimizers.FusedSGD import FusedSGD

from lightning_gaudi.emulator.missing import name_missing

__all__ = ["FusedAdamW", "FusedLamb", "FusedSGD"]
__getattr__ = name_missing("habana_frameworks.torch.hpex.optimizers")
