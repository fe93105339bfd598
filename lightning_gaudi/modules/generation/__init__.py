"""Text generation with static shapes."""

from lightning_gaudi.modules.generation.module import TextGenerationModule
from lightning_gaudi.modules.generation.stats import GenerationStats

__all__ = ["GenerationStats", "TextGenerationModule"]
