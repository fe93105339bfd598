"""Masked-language-model training: some tokens are hidden, and are the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_gaudi.data.batching import Filler
from lightning_gaudi.data.dataset import Row, TokenizedRows
from lightning_gaudi.data.labels import IGNORED


class MaskedRows(Dataset[Row]):
    """Hides a part of each row's tokens, as BERT was trained (https://arxiv.org/abs/1810.04805).

    Of the chosen tokens 80 % become the mask token, 10 % a random one and 10 % stay. Special tokens
    are never chosen. Labels are the chosen tokens, and -100 elsewhere.

    Args:
        rows: The rows, with ``special_tokens_mask``, which is left out of what comes back.
        mask_token_id: The mask token.
        num_tokens: How many tokens there are.
        fraction: Which part of a row's tokens is chosen, from 0 to 1.
        seed: Seeds the choice by row, so that it is the same in every epoch (evaluation). None
            draws from PyTorch's generator, anew each time (training).
    """

    def __init__(
        self,
        rows: TokenizedRows,
        *,
        mask_token_id: int,
        num_tokens: int,
        fraction: float,
        seed: int | None,
    ) -> None:
        self._rows = rows
        self._mask_token_id = mask_token_id
        self._num_tokens = num_tokens
        self._fraction = fraction
        self._seed = seed
        self.lengths = rows.lengths

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._rows)

    def __getitem__(self, number: int) -> Row:
        """Return a row, its ``input_ids`` partly hidden and its ``labels`` what was there."""
        row = self._rows[number]
        generator = None
        if self._seed is not None:
            generator = torch.Generator().manual_seed(self._seed + int(number))
        is_special = torch.from_numpy(row.pop("special_tokens_mask").astype(bool))
        ids = torch.from_numpy(row["input_ids"].astype(np.int64))  # a copy
        row["input_ids"], row["labels"] = self._hidden(ids, is_special, generator)
        if isinstance(number, Filler):
            row["labels"].fill_(IGNORED)
        return row

    def _hidden(self, ids: Tensor, is_special: Tensor, generator: Any) -> tuple[Tensor, Tensor]:
        chance = torch.rand(2, len(ids), generator=generator)
        random_ids = torch.randint(self._num_tokens, ids.shape, generator=generator)
        is_chosen = (chance[0] < self._fraction) & ~is_special
        labels = torch.where(is_chosen, ids, IGNORED)
        hidden = torch.where(is_chosen & (chance[1] < 0.8), self._mask_token_id, ids)
        return torch.where(is_chosen & (chance[1] >= 0.9), random_ids, hidden), labels
