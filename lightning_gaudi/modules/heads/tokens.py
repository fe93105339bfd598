"""Heads of tasks that say something of each token: its class, or which token it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_gaudi.modules.heads.base import Batch, Head, Outputs, check_classes, check_shape
from lightning_gaudi.modules.losses import (
    IGNORED,
    Sums,
    cross_entropy,
    next_token_cross_entropy,
    next_tokens,
)
from lightning_gaudi.modules.scores import ClassScores, MeanLoss, Scores, Share


class TokenClassHead(Head):
    """A class for each token.

    Args:
        num_labels: The number of classes.
    """

    can_smooth = True

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels

    @override
    def loss(self, outputs: Outputs, batch: Batch, label_smoothing: float = 0.0) -> Sums:
        """Cross entropy over tokens that have a label."""
        return cross_entropy(outputs.logits, batch["labels"], label_smoothing)

    @override
    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``logits`` [B, T, C], and ``labels`` int64 [B, T], -100 for padding."""
        labels = outputs.logits.argmax(-1)
        mask = batch.get("attention_mask")
        if mask is not None:
            labels = torch.where(mask.bool(), labels, IGNORED)
        return {"logits": outputs.logits, "labels": labels}

    @override
    def make_scores(self) -> dict[str, Scores]:
        """Loss, accuracy and F1 averaged over classes; of tokens."""
        return {"loss": MeanLoss(), "classes": ClassScores(self.num_labels)}

    @override
    def update(self, scores: Mapping[str, Scores], outputs: Outputs, batch: Batch) -> None:
        """Add a batch."""
        scores["classes"].update(outputs.logits.argmax(-1), batch["labels"])

    @override
    def names(self, labels: Any, names: Sequence[str]) -> list[str | None]:
        """The class of each token; None for padding."""
        return [None if label == IGNORED else names[label] for label in labels]

    @override
    def check(self, batch: Batch) -> None:
        """Labels are int64 [B, T] in [0, C), or -100."""
        check_classes(
            batch["labels"],
            "labels",
            self.num_labels,
            f"The model tells {self.num_labels} classes apart: set num_labels or label_names "
            "of TransformersModule.",
        )
        check_shape(batch["labels"], "labels", _tokens_of(batch), "Each token has one class.")


class MaskedTokenHead(Head):
    """Which token stands at each place: masked and sequence-to-sequence language models.

    Args:
        vocab_size: The number of tokens that the model knows.
    """

    can_smooth = True

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    @override
    def loss(self, outputs: Outputs, batch: Batch, label_smoothing: float = 0.0) -> Sums:
        """Cross entropy over tokens that have a label."""
        return cross_entropy(outputs.logits, batch["labels"], label_smoothing)

    @override
    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``logits`` [B, T, V] and ``labels`` int64 [B, T], the likeliest tokens."""
        return {"logits": outputs.logits, "labels": outputs.logits.argmax(-1)}

    @override
    def make_scores(self) -> dict[str, Scores]:
        """Loss, perplexity and accuracy; of tokens."""
        return {"loss": MeanLoss(perplexity=True), "tokens": Share("accuracy")}

    @override
    def update(self, scores: Mapping[str, Scores], outputs: Outputs, batch: Batch) -> None:
        """Add a batch."""
        labels = self._wanted(batch["labels"])
        scores["tokens"].update(outputs.logits.argmax(-1) == labels, labels != IGNORED)

    @override
    def check(self, batch: Batch) -> None:
        """Labels are int64 [B, T] in [0, V), or -100."""
        check_classes(
            batch["labels"],
            "labels",
            self.vocab_size,
            f"The model knows {self.vocab_size} tokens: is the tokenizer another model's?",
        )
        self._check_shape(batch)

    def _check_shape(self, batch: Batch) -> None:
        check_shape(batch["labels"], "labels", _tokens_of(batch), "Each token has one label.")

    def _wanted(self, labels: Tensor) -> Tensor:
        return labels


class Seq2SeqHead(MaskedTokenHead):
    """The tokens of another text."""

    @override
    def _check_shape(self, batch: Batch) -> None:
        if batch["labels"].ndim != 2:
            check_shape(batch["labels"], "labels", (None, 0), "Each row has one text.")


class NextTokenHead(MaskedTokenHead):
    """Which token comes next: causal language models. Labels come unshifted, as in Transformers."""

    @override
    def loss(self, outputs: Outputs, batch: Batch, label_smoothing: float = 0.0) -> Sums:
        """Cross entropy of each next token that has a label."""
        return next_token_cross_entropy(outputs.logits, batch["labels"], label_smoothing)

    @override
    def _wanted(self, labels: Tensor) -> Tensor:
        return next_tokens(labels)


def _tokens_of(batch: Batch) -> tuple[int | None, ...]:
    ids = batch.get("input_ids")
    return (None, None) if ids is None else tuple(ids.shape)
