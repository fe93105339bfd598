"""``habana_frameworks.torch.version``: the release whose names and results are followed."""

from lightning_gaudi.emulator.missing import name_missing

__version__ = version = "1.19.0+emulated"

__all__ = ["__version__", "version"]
__getattr__ = name_missing("habana_frameworks.torch.version")
