"""The console script ``lightning-gaudi``."""

from lightning_gaudi.cli.main import main

__all__ = ["main"]
