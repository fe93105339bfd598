"""Checkpoints: written whole, read with clear errors, with the random numbers' states."""

from lightning_gaudi.checkpoint.io import HPUCheckpointIO

__all__ = ["HPUCheckpointIO"]
