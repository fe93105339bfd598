"""Which line of the user's code is running: the emulator knows, and it works on a card too."""

from lightning_gaudi.emulator.source import library_line, source_line

__all__ = ["library_line", "source_line"]
