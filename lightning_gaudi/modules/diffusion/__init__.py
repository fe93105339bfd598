"""Image sampling with the pipelines of Diffusers."""

from lightning_gaudi.modules.diffusion.sampler import DiffusionSampler
from lightning_gaudi.modules.diffusion.throughput import SamplingStats

__all__ = ["DiffusionSampler", "SamplingStats"]
