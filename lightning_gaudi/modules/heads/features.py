"""The head of feature extraction: one vector a row, pooled from those of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from lightning_gaudi.modules.heads.base import Batch, Head, Outputs
from lightning_gaudi.modules.losses import Sums
from lightning_gaudi.modules.scores import Scores

Pooling = Literal["mean", "cls", "last"]


class EmbeddingHead(Head):
    """Pooled embeddings.

    Args:
        pooling: ``"mean"`` of all tokens that are no padding, the first of them (``"cls"``), or
            the ``"last"`` of them. For images that are given as feature maps, the mean.
        normalize: Whether to scale each vector to length 1.
    """

    label_keys = ()

    def __init__(self, pooling: Pooling, *, normalize: bool) -> None:
        self.pooling = pooling
        self.normalize = normalize

    @override
    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``embeddings`` [B, H], in the dtype of the hidden states."""
        hidden = outputs.last_hidden_state
        if hidden.ndim == 4:  # [B, H, height, width]
            pooled = hidden.mean((2, 3))
        else:
            pooled = self._pool(hidden, batch.get("attention_mask"))
        return {"embeddings": functional.normalize(pooled, dim=-1) if self.normalize else pooled}

    def _pool(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            if self.pooling == "mean":
                return hidden.mean(1)
            return hidden[:, 0 if self.pooling == "cls" else -1]
        if self.pooling == "mean":
            weights = mask.to(hidden.dtype)[:, :, None]
            return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
        # Rows may be padded on either side. argmax finds the first of several.
        places = torch.arange(mask.shape[1], device=mask.device)
        order = places if self.pooling == "last" else places.flip(0)
        place = ((mask != 0) * (order + 1)).argmax(1)
        return hidden.gather(1, place[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)

    @override
    def loss(self, outputs: Outputs, batch: Batch, label_smoothing: float = 0.0) -> Sums:
        """There is none."""
        raise self._no_loss()

    @override
    def make_scores(self) -> dict[str, Scores]:
        """There are none."""
        raise self._no_loss()

    @override
    def update(self, scores: Mapping[str, Scores], outputs: Outputs, batch: Batch) -> None:
        """There is nothing to update."""
        raise self._no_loss()

    @override
    def check(self, batch: Batch) -> None:
        """There are no labels."""

    @staticmethod
    def _no_loss() -> NotImplementedError:
        return NotImplementedError("feature extraction has no loss: it predicts only")
