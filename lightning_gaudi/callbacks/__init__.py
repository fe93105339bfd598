"""Lightning callbacks for Gaudi."""

from lightning_gaudi.callbacks.graph import HPUGraphCallback

__all__ = ["HPUGraphCallback"]
