"""Losses as sums and counts, so that rows and tokens without a label add nothing.

Stock Transformers averages over what has a label. Here the sum and the number are kept apart: their
quotient is the stock loss of a batch, and sums of many batches give the exact mean over a data set,
whatever rows were added to fill batches up. Nothing is read on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""The label of a row or token that has none, where labels are whole numbers; else it is NaN."""


class Sums(NamedTuple):
    """A loss that is the mean of one or more means.

    Attributes:
        total: Sums of losses, float32 [P].
        num_terms: How many losses each is the sum of, int64 [P].
    """

    total: Tensor
    num_terms: Tensor

    def mean(self) -> Tensor:
        """The loss, float32 []; 0, with gradients of 0, where nothing has a label."""
        return (self.total / self.num_terms.clamp(min=1)).mean()


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Sums:
    """Cross entropy of classes.

    Args:
        logits: Floating point [..., C].
        labels: Whole numbers [...] in [0, C), or -100 for none.
        label_smoothing: The share of the loss that treats all classes alike, in [0, 1).
    """
    total = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(),
        labels.reshape(-1).long(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return Sums(total.reshape(1), (labels != IGNORED).sum().reshape(1))


def next_token_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Sums:
    """Cross entropy of each next token, as a causal language model is trained.

    Args:
        logits: Floating point [B, T, V]; those at ``t`` are for the label at ``t + 1``.
        labels: int64 [B, T], not shifted; -100 for none.
        label_smoothing: As for `cross_entropy`.
    """
    return cross_entropy(logits, next_tokens(labels), label_smoothing)


def next_tokens(labels: Tensor) -> Tensor:
    """Labels [B, T] shifted to where they are predicted; the last column has none."""
    return functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Sums:
    """Binary cross entropy of labels that may hold together.

    Args:
        logits: Floating point [B, C].
        labels: Floating point [B, C] in [0, 1], or NaN for none.
    """
    known = ~torch.isnan(labels)
    target = torch.where(known, labels, 0.0).float()
    losses = functional.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return _sums(losses, known)


def squared_error(predicted: Tensor, labels: Tensor) -> Sums:
    """Squared error of numbers.

    Args:
        predicted: Floating point [B, C].
        labels: Floating point of as many numbers, or NaN for none.
    """
    labels = labels.reshape(predicted.shape)
    known = ~torch.isnan(labels)
    target = torch.where(known, labels, 0.0).float()
    return _sums((predicted.float() - target) ** 2, known)


def span_cross_entropy(
    start_logits: Tensor, end_logits: Tensor, starts: Tensor, ends: Tensor
) -> Sums:
    """Cross entropy of the first and the last token of an answer; two means, to be averaged.

    Args:
        start_logits: Floating point [B, T].
        end_logits: Floating point [B, T].
        starts: int64 [B]. A position outside the T tokens counts for nothing, as in Transformers;
            so does a negative one, which Transformers would take for 0.
        ends: int64 [B], likewise.
    """
    parts = [
        cross_entropy(logits, positions_inside(positions, logits.shape[1]))
        for logits, positions in ((start_logits, starts), (end_logits, ends))
    ]
    return Sums(torch.cat([p.total for p in parts]), torch.cat([p.num_terms for p in parts]))


def positions_inside(positions: Tensor, num_tokens: int) -> Tensor:
    """Positions int64 [B], with -100 for those outside ``num_tokens`` tokens."""
    positions = positions.reshape(-1)
    return torch.where((positions >= 0) & (positions < num_tokens), positions, IGNORED)


def _sums(losses: Tensor, known: Tensor) -> Sums:
    total = torch.where(known, losses, 0.0).sum()
    return Sums(total.reshape(1), known.sum().reshape(1))
