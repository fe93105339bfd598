"""Metrics that never read the host, for one stage's predictions.

They are torchmetrics' ``Metric`` and agree with its own classes, which look for labels to ignore,
and for NaN, on the host in every step. These keep sums on the device, and rows and tokens without a
label add nothing. States add up over ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_gaudi.modules.losses import IGNORED, Sums


class Scores(Metric):
    """A metric that computes one or more numbers, by name."""

    higher_is_better = None
    is_differentiable = False
    full_state_update = False

    def _add_sum(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> None:
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")


class MeanLoss(Scores):
    """The exact mean loss over all rows or tokens.

    Args:
        num_means: Of how many means a loss is the mean (`Sums`).
        perplexity: Whether to give its exponential too.
    """

    total: Tensor
    count: Tensor

    def __init__(self, num_means: int = 1, *, perplexity: bool = False) -> None:
        super().__init__()
        self._perplexity = perplexity
        self._add_sum("total", (num_means,), torch.float32)
        self._add_sum("count", (num_means,))

    def update(self, sums: Sums) -> None:
        """Add a batch's."""
        self.total = self.total + sums.total.detach()
        self.count = self.count + sums.num_terms

    def compute(self) -> dict[str, Tensor]:
        """``loss``, and maybe ``perplexity``; NaN where nothing had a label."""
        loss = (self.total / self.count).mean()
        return {"loss": loss} | ({"perplexity": loss.exp()} if self._perplexity else {})


class Share(Scores):
    """The share of rows or tokens that are right, or the mean of numbers.

    Args:
        name: What it is called.
    """

    total: Tensor
    count: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._add_sum("total", (), torch.float32)
        self._add_sum("count", ())

    def update(self, values: Tensor, known: Tensor) -> None:
        """Add values, bool or floating point, where ``known``, a bool of the same shape, is set."""
        self.total = self.total + torch.where(known, values.float(), 0.0).sum()
        self.count = self.count + known.sum()

    def compute(self) -> dict[str, Tensor]:
        """The mean."""
        return {self._name: self.total / self.count}


class ClassScores(Scores):
    """Accuracy, and F1 averaged over classes.

    Equal to ``MulticlassAccuracy(average="micro")`` and ``MulticlassF1Score(average="macro")``.

    Args:
        num_classes: The number of classes.
    """

    right: Tensor
    predicted: Tensor
    actual: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self._num_classes = num_classes
        for name in ("right", "predicted", "actual"):
            self._add_sum(name, (num_classes,))

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            predicted: Classes, int64 [...].
            labels: int64 [...], -100 for none.
        """
        labels = labels.reshape(-1, 1)
        known = labels != IGNORED
        classes = torch.arange(self._num_classes, device=labels.device)
        is_predicted = (predicted.reshape(-1, 1) == classes) & known
        is_actual = labels == classes
        self.right = self.right + (is_predicted & is_actual).sum(0)
        self.predicted = self.predicted + is_predicted.sum(0)
        self.actual = self.actual + is_actual.sum(0)

    def compute(self) -> dict[str, Tensor]:
        """``accuracy`` and ``f1``. Classes neither predicted nor there are left out of F1."""
        both = self.predicted + self.actual
        f1 = 2 * self.right / both.clamp(min=1)
        return {
            "accuracy": self.right.sum() / self.actual.sum(),
            "f1": f1.sum() / (both > 0).sum(),
        }


class MultilabelScores(Scores):
    """Accuracy and F1 of labels that may hold together, averaged over the labels.

    Equal to ``MultilabelAccuracy`` and ``MultilabelF1Score`` with ``average="macro"``.

    Args:
        num_labels: The number of labels.
    """

    right: Tensor
    wrong: Tensor
    hits: Tensor

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        for name in ("right", "wrong", "hits"):
            self._add_sum(name, (num_labels,))

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            predicted: Which labels hold, int64 [B, C] of 0 and 1.
            labels: Floating point [B, C], above one half where the label holds; NaN for none.
        """
        known = ~torch.isnan(labels)
        holds = labels > 0.5
        is_right = (predicted.bool() == holds) & known
        self.right = self.right + is_right.sum(0)
        self.wrong = self.wrong + (known & ~is_right).sum(0)
        self.hits = self.hits + (is_right & holds).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """``accuracy`` and ``f1``; a label that neither holds nor is predicted has an F1 of 0."""
        f1 = 2 * self.hits / (2 * self.hits + self.wrong).clamp(min=1)
        accuracy = self.right / (self.right + self.wrong).clamp(min=1)
        return {"accuracy": accuracy.mean(), "f1": f1.mean()}


class NumberScores(Scores):
    """Mean squared error and Pearson's correlation, averaged over the numbers of a row.

    Equal to ``MeanSquaredError`` and ``PearsonCorrCoef``. Means and squares around them are merged
    batch by batch (Chan, Golub and LeVeque, 1979), which float32 bears where plain sums would not.

    Args:
        num_outputs: How many numbers a row has.
    """

    moments: Tensor
    squared: Tensor

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        # Rows: count, both means, both squares around them, the product around them.
        self.add_state("moments", torch.zeros(6, num_outputs), dist_reduce_fx=None)
        self._add_sum("squared", (num_outputs,), torch.float32)

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            predicted: Floating point [B, C].
            labels: Floating point of as many numbers; NaN for none.
        """
        labels = labels.reshape(predicted.shape)
        known = ~torch.isnan(labels)
        y = torch.where(known, labels, 0.0).float()
        x = torch.where(known, predicted.float(), 0.0)
        count = known.sum(0)
        means = torch.stack([x.sum(0), y.sum(0)]) / count.clamp(min=1)
        dx, dy = (torch.where(known, v - m, 0.0) for v, m in zip((x, y), means, strict=True))
        around = torch.stack([(dx * dx).sum(0), (dy * dy).sum(0), (dx * dy).sum(0)])
        self.moments = _merged(self.moments, torch.cat([count.float()[None], means, around]))
        self.squared = self.squared + ((x - y) ** 2).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """``mse`` and ``pearson``."""
        ranks = self.moments.reshape(-1, *self.moments.shape[-2:])  # one, or one a rank
        moments = ranks[0]
        for other in ranks[1:]:
            moments = _merged(moments, other)
        count, _, _, xx, yy, xy = moments
        return {
            "mse": (self.squared / count).mean(),
            "pearson": (xy / xx.sqrt() / yy.sqrt()).clamp(-1, 1).mean(),
        }


def _merged(one: Tensor, other: Tensor) -> Tensor:
    """The moments of two samples together."""
    count = one[0] + other[0]
    share = other[0] / count.clamp(min=1)
    step = other[1:3] - one[1:3]
    between = torch.stack([step[0] ** 2, step[1] ** 2, step[0] * step[1]]) * one[0] * share
    return torch.cat([count[None], one[1:3] + step * share, one[3:] + other[3:] + between])
