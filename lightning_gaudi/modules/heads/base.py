"""What a task adds to a model: its loss, its metrics, its predictions and its checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.modules.losses import IGNORED, Sums
from lightning_gaudi.modules.scores import Scores

Batch = Mapping[str, Any]
Outputs = Any
"""What a Transformers model returns."""


class Head(ABC):
    """The part of a task that is no part of the model's forward.

    None of the methods but `check` reads the host.
    """

    label_keys: tuple[str, ...] = ("labels",)
    """The keys of a batch that hold its labels."""
    can_smooth = False
    """Whether the loss is of one class out of many, so that labels can be smoothed."""

    @abstractmethod
    def loss(self, outputs: Outputs, batch: Batch, label_smoothing: float = 0.0) -> Sums:
        """The loss of a batch that has labels."""

    @abstractmethod
    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """What to predict, rows first."""

    @abstractmethod
    def make_scores(self) -> dict[str, Scores]:
        """New metrics for a stage, by any name; `loss` among them."""

    @abstractmethod
    def update(self, scores: Mapping[str, Scores], outputs: Outputs, batch: Batch) -> None:
        """Add a batch that has labels to the metrics."""

    def names(self, labels: Any, names: Sequence[str]) -> Any:
        """The names of the labels predicted for one row; None where they have none."""
        return None

    @abstractmethod
    def check(self, batch: Batch) -> None:
        """Check the labels of a batch on the host.

        Raises:
            ValueError: A label cannot be.
        """


def check_classes(labels: Any, name: str, num_classes: int, what: str) -> None:
    """Check that labels on the host are classes, or -100.

    Args:
        labels: The labels. Those on a device are not looked at: that would be a host read.
        name: Their key in the batch.
        num_classes: How many classes there are.
        what: Where that number comes from, and how to change it.

    Raises:
        ValueError: They are not.
    """
    if not isinstance(labels, Tensor) or labels.device.type != "cpu":
        return
    if labels.is_floating_point():
        raise ValueError(
            f"batch[{name!r}] must hold classes as whole numbers (torch.int64), but it is "
            f"{labels.dtype} of shape {tuple(labels.shape)}. {what}"
        )
    wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != IGNORED)]
    if wrong.numel():
        raise ValueError(
            f"batch[{name!r}] must be in 0 to {num_classes - 1}, or {IGNORED} for none, but it "
            f"holds {_some(wrong)}. {what}"
        )


def _some(values: Tensor) -> str:
    distinct = torch.unique(values).tolist()
    return ", ".join(map(str, distinct[:5])) + (", ..." if len(distinct) > 5 else "")


def check_shape(labels: Any, name: str, shape: tuple[int | None, ...], what: str) -> None:
    """Check the shape of labels; None stands for any size.

    Raises:
        ValueError: It is another.
    """
    if isinstance(labels, Tensor) and not (
        labels.ndim == len(shape)
        and all(
            want is None or want == have for want, have in zip(shape, labels.shape, strict=True)
        )
    ):
        wanted = ", ".join("B" if size is None else str(size) for size in shape)
        raise ValueError(
            f"batch[{name!r}] must have the shape [{wanted}], but it has {list(labels.shape)}. "
            f"{what}"
        )
