"""``habana_frameworks.torch``: importing it loads the device, which fixes the execution mode."""

from lightning_gaudi.emulator import mode
from lightning_gaudi.emulator.missing import name_missing

mode.is_lazy()

from habana_frameworks.torch import core, hpu, utils  # noqa: E402
from habana_frameworks.torch.version import __version__, version  # noqa: E402

__all__ = ["__version__", "core", "hpu", "utils", "version"]
__getattr__ = name_missing("habana_frameworks.torch")
