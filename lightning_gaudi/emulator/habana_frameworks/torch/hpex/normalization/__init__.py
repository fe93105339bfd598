"""``habana_frameworks.torch.hpex.normalization``."""

from habana_frameworks.torch.hpex.normalization.FusedClipNorm import FusedClipNorm
from habana_frameworks.torch.hpex.normalization.FusedRMSNorm import FusedRMSNorm, RmsNormBwdMode

from lightning_gaudi.emulator.missing import name_missing

__all__ = ["FusedClipNorm", "FusedRMSNorm", "RmsNormBwdMode"]
__getattr__ = name_missing("habana_frameworks.torch.hpex.normalization")
