"""``habana_frameworks.torch.dynamo.compile_backend.backends``."""

from lightning_gaudi.emulator.compile_backend import hpu_backend, register
from lightning_gaudi.emulator.missing import name_missing

register()

__all__ = ["hpu_backend"]
__getattr__ = name_missing("habana_frameworks.torch.dynamo.compile_backend.backends")
