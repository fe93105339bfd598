"""``habana_frameworks.torch.dynamo``."""

from habana_frameworks.torch.dynamo import compile_backend

from lightning_gaudi.emulator.missing import name_missing

__all__ = ["compile_backend"]
__getattr__ = name_missing("habana_frameworks.torch.dynamo")
