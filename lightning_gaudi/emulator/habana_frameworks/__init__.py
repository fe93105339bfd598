"""The Gaudi software's package, as far as the emulated HPU answers for it."""

from lightning_gaudi.emulator.missing import name_missing

__getattr__ = name_missing("habana_frameworks")
