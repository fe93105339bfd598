"""What each task adds to a model."""

from lightning_gaudi.modules.heads.base import Head
from lightning_gaudi.modules.heads.features import EmbeddingHead, Pooling
from lightning_gaudi.modules.heads.rows import ClassHead, MultilabelHead, NumberHead
from lightning_gaudi.modules.heads.spans import SpanHead
from lightning_gaudi.modules.heads.tokens import (
    MaskedTokenHead,
    NextTokenHead,
    Seq2SeqHead,
    TokenClassHead,
)

__all__ = [
    "ClassHead",
    "EmbeddingHead",
    "Head",
    "MaskedTokenHead",
    "MultilabelHead",
    "NextTokenHead",
    "NumberHead",
    "Pooling",
    "Seq2SeqHead",
    "SpanHead",
    "TokenClassHead",
]
