"""LightningModules around models of other libraries."""

from lightning_gaudi.modules.diffusion import DiffusionSampler
from lightning_gaudi.modules.transformers import TransformersModule

__all__ = ["DiffusionSampler", "TransformersModule"]
