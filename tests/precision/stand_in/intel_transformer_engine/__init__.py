"""A small stand-in for Intel's Transformer Engine, by its documented API and its public source.

Facts: HabanaAI/gaudi-pytorch-bridge, ``hpex/experimental/transformer_engine``, and docs.habana.ai,
"FP8 Training with Intel Gaudi Transformer Engine". It rounds to 8 bits for real, by PyTorch's own
float8 types, with scales from the largest values of past steps; so numbers differ from bfloat16's
and depend on what came before.
"""

from . import recipe
from .fp8 import fp8_autocast
from .module import Linear

__all__ = ["Linear", "fp8_autocast", "recipe"]
