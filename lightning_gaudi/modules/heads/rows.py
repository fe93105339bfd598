"""Heads of tasks about each row as a whole: its class, labels that may hold together, numbers."""

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
    binary_cross_entropy,
    cross_entropy,
    squared_error,
)
from lightning_gaudi.modules.scores import (
    ClassScores,
    MeanLoss,
    MultilabelScores,
    NumberScores,
    Scores,
)


class ClassHead(Head):
    """One class a row, for texts and images.

    Args:
        num_labels: The number of classes.
    """

    can_smooth = True

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels

    @override
    def loss(self, outputs: Outputs, batch: Batch, label_smoothing: float = 0.0) -> Sums:
        """Cross entropy."""
        return cross_entropy(outputs.logits, batch["labels"], label_smoothing)

    @override
    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``logits`` [B, C], ``probabilities`` float32 [B, C], ``labels`` int64 [B]."""
        logits = outputs.logits
        return {
            "logits": logits,
            "probabilities": logits.float().softmax(-1),
            "labels": logits.argmax(-1),
        }

    @override
    def make_scores(self) -> dict[str, Scores]:
        """Loss, accuracy and F1 averaged over classes."""
        return {"loss": MeanLoss(), "classes": ClassScores(self.num_labels)}

    @override
    def update(self, scores: Mapping[str, Scores], outputs: Outputs, batch: Batch) -> None:
        """Add a batch."""
        scores["classes"].update(outputs.logits.argmax(-1), batch["labels"])

    @override
    def names(self, labels: Any, names: Sequence[str]) -> str:
        """The class's name."""
        return str(names[labels])

    @override
    def check(self, batch: Batch) -> None:
        """Labels are int64 [B] in [0, C), or -100."""
        labels = batch["labels"]
        check_classes(
            labels,
            "labels",
            self.num_labels,
            f"The model tells {self.num_labels} classes apart: set num_labels or label_names "
            "of TransformersModule, or problem_type for labels that are no classes.",
        )
        if isinstance(labels, Tensor) and labels.ndim == 2 and labels.shape[1] == 1:
            return
        check_shape(labels, "labels", (None,), "Each row has one class.")


class MultilabelHead(Head):
    """Labels that may hold together.

    Args:
        num_labels: How many there are.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels

    @override
    def loss(self, outputs: Outputs, batch: Batch, label_smoothing: float = 0.0) -> Sums:
        """Binary cross entropy."""
        return binary_cross_entropy(outputs.logits, _with_nan(batch["labels"]))

    @override
    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``logits`` and float32 ``probabilities`` [B, C]; ``labels`` int64 [B, C] of 0 and 1."""
        logits = outputs.logits
        return {
            "logits": logits,
            "probabilities": logits.float().sigmoid(),
            "labels": (logits > 0).long(),
        }

    @override
    def make_scores(self) -> dict[str, Scores]:
        """Loss, and accuracy and F1 averaged over labels."""
        return {"loss": MeanLoss(), "labels": MultilabelScores(self.num_labels)}

    @override
    def update(self, scores: Mapping[str, Scores], outputs: Outputs, batch: Batch) -> None:
        """Add a batch."""
        scores["labels"].update((outputs.logits > 0).long(), _with_nan(batch["labels"]))

    @override
    def names(self, labels: Any, names: Sequence[str]) -> list[str]:
        """Those that hold."""
        return [name for name, holds in zip(names, labels, strict=True) if holds]

    @override
    def check(self, batch: Batch) -> None:
        """Labels are [B, C] in [0, 1], or NaN; -100 where they are whole numbers."""
        labels = batch["labels"]
        what = f"The model has {self.num_labels} labels, each 0 or 1 in every row."
        check_shape(labels, "labels", (None, self.num_labels), what)
        if isinstance(labels, Tensor) and labels.device.type == "cpu":
            values = _with_nan(labels)
            if bool(((values < 0) | (values > 1)).any()):
                raise ValueError(
                    "batch['labels'] must be in 0 to 1, or NaN for none, but it goes from "
                    f"{values.nan_to_num(0.5).min():g} to {values.nan_to_num(0.5).max():g}. {what}"
                )


class NumberHead(Head):
    """Numbers: regression.

    Args:
        num_labels: How many numbers a row has.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels

    @override
    def loss(self, outputs: Outputs, batch: Batch, label_smoothing: float = 0.0) -> Sums:
        """Squared error."""
        return squared_error(outputs.logits, _with_nan(batch["labels"]))

    @override
    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``logits`` [B, C], and the same numbers as ``labels``, [B] where there is one a row."""
        logits = outputs.logits
        return {"logits": logits, "labels": logits.squeeze(-1) if self.num_labels == 1 else logits}

    @override
    def make_scores(self) -> dict[str, Scores]:
        """Loss, mean squared error and Pearson's correlation."""
        return {"loss": MeanLoss(), "numbers": NumberScores(self.num_labels)}

    @override
    def update(self, scores: Mapping[str, Scores], outputs: Outputs, batch: Batch) -> None:
        """Add a batch."""
        scores["numbers"].update(outputs.logits, _with_nan(batch["labels"]))

    @override
    def check(self, batch: Batch) -> None:
        """Labels are [B] or [B, C], finite or NaN."""
        labels = batch["labels"]
        what = f"The model predicts {self.num_labels} number(s) a row."
        if not (self.num_labels == 1 and isinstance(labels, Tensor) and labels.ndim == 1):
            check_shape(labels, "labels", (None, self.num_labels), what)
        if isinstance(labels, Tensor) and labels.device.type == "cpu" and labels.isinf().any():
            raise ValueError(f"batch['labels'] must be finite, or NaN for none, not inf. {what}")


def _with_nan(labels: Tensor) -> Tensor:
    """Labels as floating point: NaN in place of -100 where they were whole numbers."""
    if labels.is_floating_point():
        return labels
    return torch.where(labels == IGNORED, torch.nan, labels.float())
