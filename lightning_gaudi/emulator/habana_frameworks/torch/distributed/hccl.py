"""``habana_frameworks.torch.distributed.hccl``: importing it registers the backend ``"hccl"``."""

from lightning_gaudi.emulator import hccl
from lightning_gaudi.emulator.hccl import initialize_distributed_hpu
from lightning_gaudi.emulator.missing import name_missing

hccl.register()

__all__ = ["initialize_distributed_hpu"]
__getattr__ = name_missing("habana_frameworks.torch.distributed.hccl")
