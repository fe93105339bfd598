"""`TokenizedRows`: a data set of rows that are tokenized once, packed in few arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from lightning_gaudi.data.batching import Filler
from lightning_gaudi.data.labels import IGNORED, Labels

Row = dict[str, Any]


class Ragged:
    """Sequences of whole numbers of many lengths, in one array.

    Args:
        sequences: The sequences; each number fits in 32 bits.
    """

    def __init__(self, sequences: Iterable[Sequence[int] | npt.NDArray[np.int32]]) -> None:
        arrays = [np.asarray(sequence, dtype=np.int32) for sequence in sequences]
        self.lengths: npt.NDArray[np.int64] = np.asarray([len(a) for a in arrays], dtype=np.int64)
        self._ends = np.cumsum(self.lengths)
        self._values = np.concatenate([np.zeros(0, dtype=np.int32), *arrays])

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self.lengths)

    def __getitem__(self, number: int) -> npt.NDArray[np.int32]:
        """Return a sequence, int32; a view."""
        end = self._ends[number]
        return self._values[end - self.lengths[number] : end]


class TokenizedRows(Dataset[Row]):
    """Rows for `BucketCollator`: token ids and what belongs to them, and labels.

    A `Filler` gives the row of its number with ignored labels: -100, or NaN where labels are
    floats.

    Args:
        fields: Sequences by name, with ``input_ids``; each of as many rows.
        labels: Labels of rows; None where there are none or they are among ``fields``.

    Attributes:
        lengths: Tokens in each row, int64.
    """

    def __init__(self, fields: Mapping[str, Ragged], labels: Labels | None = None) -> None:
        self.fields = dict(fields)
        self.labels = labels
        self.lengths = self.fields["input_ids"].lengths

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.lengths)

    def __getitem__(self, number: int) -> Row:
        """Return a row. Its arrays are views; do not write to them."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of a data set of {len(self)} rows")
        row: Row = {name: field[number] for name, field in self.fields.items()}
        is_filler = isinstance(number, Filler)
        if self.labels is not None:
            row["labels"] = self.labels.ignored if is_filler else self.labels.values[number]
        elif is_filler and "labels" in row:
            row["labels"] = np.full_like(row["labels"], IGNORED)
        return row
