"""The head of extractive question answering: where in the text the answer starts and ends."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from lightning_gaudi.modules.heads.base import Batch, Head, Outputs, check_shape
from lightning_gaudi.modules.losses import IGNORED, Sums, positions_inside, span_cross_entropy
from lightning_gaudi.modules.scores import MeanLoss, Scores, Share


class SpanHead(Head):
    """The first and the last token of the answer.

    Args:
        max_answer_length: The longest span that is predicted, in tokens.
    """

    label_keys = ("start_positions", "end_positions")

    def __init__(self, max_answer_length: int) -> None:
        self.max_answer_length = max_answer_length

    @override
    def loss(self, outputs: Outputs, batch: Batch, label_smoothing: float = 0.0) -> Sums:
        """The mean of both positions' cross entropies."""
        return span_cross_entropy(
            outputs.start_logits,
            outputs.end_logits,
            batch["start_positions"],
            batch["end_positions"],
        )

    @override
    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``logits`` [B, T, 2] of start and end; ``spans`` int64 [B, 2]; ``scores`` [B].

        A span is its first and its last token, both inside. It is the likeliest one of at most
        ``max_answer_length`` tokens that are no padding; its score is the sum of both logits.
        """
        spans, scores = self._best_spans(outputs, batch)
        logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
        return {"logits": logits, "spans": spans, "scores": scores}

    @override
    def make_scores(self) -> dict[str, Scores]:
        """Loss, exact matches, and F1 of the tokens in a span; of rows."""
        return {"loss": MeanLoss(2), "exact": Share("exact_match"), "overlap": Share("f1")}

    @override
    def update(self, scores: Mapping[str, Scores], outputs: Outputs, batch: Batch) -> None:
        """Add a batch."""
        spans, _ = self._best_spans(outputs, batch)
        num_tokens = outputs.start_logits.shape[1]
        wanted = torch.stack(
            [positions_inside(batch[key], num_tokens) for key in self.label_keys], dim=1
        )
        known = (wanted != IGNORED).all(1)
        scores["exact"].update((spans == wanted).all(1), known)
        common = torch.minimum(spans[:, 1], wanted[:, 1]) - torch.maximum(spans[:, 0], wanted[:, 0])
        lengths = spans[:, 1] - spans[:, 0] + wanted[:, 1] - wanted[:, 0] + 2
        scores["overlap"].update(2 * (common + 1).clamp(min=0) / lengths.clamp(min=1), known)

    @override
    def check(self, batch: Batch) -> None:
        """Positions are int64 [B], and no answer ends before it starts."""
        starts, ends = (batch[key] for key in self.label_keys)
        for key, positions in zip(self.label_keys, (starts, ends), strict=True):
            if positions.is_floating_point():
                raise ValueError(
                    f"batch[{key!r}] must hold token positions as whole numbers (torch.int64), "
                    f"but it is {positions.dtype}."
                )
            if positions.ndim != 2 or positions.shape[1] != 1:
                check_shape(positions, key, (None,), "Each row has one answer.")
        if starts.device.type == ends.device.type == "cpu":
            wrong = ((ends < starts) & (ends >= 0)).reshape(-1).nonzero()
            if wrong.numel():
                row = int(wrong[0])
                raise ValueError(
                    f"row {row} of a batch has an answer that ends (at token "
                    f"{int(ends.reshape(-1)[row])}) before it starts (at token "
                    f"{int(starts.reshape(-1)[row])}). Use {IGNORED} in both for a row without "
                    "an answer in its text."
                )

    def _best_spans(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """The likeliest spans, int64 [B, 2], and their scores, float32 [B]."""
        start, end = outputs.start_logits.float(), outputs.end_logits.float()
        num_tokens = start.shape[1]
        mask = batch.get("attention_mask")
        if mask is not None:
            start = start.masked_fill(mask == 0, -torch.inf)
            end = end.masked_fill(mask == 0, -torch.inf)
        places = torch.arange(num_tokens, device=start.device)
        length = places[None, :] - places[:, None] + 1  # of a span, by start and end
        allowed = (length >= 1) & (length <= self.max_answer_length)
        sums = (start[:, :, None] + end[:, None, :]).masked_fill(~allowed, -torch.inf)
        scores, best = sums.flatten(1).max(1)
        first = torch.div(best, num_tokens, rounding_mode="floor")
        return torch.stack([first, best - first * num_tokens], dim=1), scores
