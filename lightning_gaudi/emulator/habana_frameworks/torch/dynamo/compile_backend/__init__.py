"""``habana_frameworks.torch.dynamo.compile_backend``: importing it registers ``"hpu_backend"``."""

from habana_frameworks.torch.dynamo.compile_backend import backends, config

from lightning_gaudi.emulator.missing import name_missing

__all__ = ["backends", "config"]
__getattr__ = name_missing("habana_frameworks.torch.dynamo.compile_backend")
