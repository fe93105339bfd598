"""How rows become steps: batches of one bucket each, the same number on every rank.

1. Each bucket's rows are cut into batches of its size.
2. As many batches of one bucket as there are ranks make a step, so that all ranks work on one
   shape at once. What is left over of each bucket makes steps of mixed buckets, largest first.
3. The last of these may have fewer batches than there are ranks. Its batches are then halved, the
   one with most rows first, until each rank has one.
4. A batch with too few rows is filled up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lightning_gaudi.errors import ConfigurationError

Fill = Literal["repeat", "filler", "none"]
Rows = npt.NDArray[np.int64]


class Filler(int):
    """A row's number in a batch that it only fills up.

    It indexes any data set like the number itself. Our own data sets give its row ignored labels,
    and `in_data_order` drops what was predicted for it. Fillers come last in their batch.
    """

    def __repr__(self) -> str:
        return f"Filler({int(self)})"


@dataclass(frozen=True)
class Batch:
    """Rows of one bucket, and how many fillers follow them.

    Attributes:
        bucket: The bucket's position among the buckets.
        rows: The rows' numbers, int64.
        filler: The row that fillers repeat.
        num_fillers: How many there are.
    """

    bucket: int
    rows: Rows
    filler: int = 0
    num_fillers: int = 0

    def indices(self) -> list[int]:
        """Give the rows' numbers, the fillers last."""
        return [*self.rows.tolist(), *[Filler(self.filler)] * self.num_fillers]


def count_steps(
    rows_of_bucket: Sequence[int], batch_sizes: Sequence[int], world_size: int, *, drop_last: bool
) -> int:
    """Count the steps of `plan_steps`, which are the same on every rank."""
    pairs = zip(rows_of_bucket, batch_sizes, strict=True)
    if drop_last:
        return sum(rows // size for rows, size in pairs) // world_size
    return -(-sum(-(-rows // size) for rows, size in pairs) // world_size)


def plan_steps(
    rows_of_bucket: Sequence[Rows],
    batch_sizes: Sequence[int],
    world_size: int,
    *,
    fill: Fill,
    drop_last: bool,
) -> list[list[Batch]]:
    """Make all steps of an epoch, each with a batch for every rank.

    Args:
        rows_of_bucket: Row numbers of each bucket, in the order to take them in.
        batch_sizes: Rows in a batch, for each bucket.
        world_size: The number of ranks.
        fill: What fills up a batch: ``"repeat"`` takes rows of its bucket once more, from the
            start; ``"filler"`` takes `Filler`; ``"none"`` leaves it smaller.
        drop_last: Whether batches with too few rows and a step with too few batches are left out.

    Raises:
        ConfigurationError: ``fill="none"`` with several ranks, which could then not take the same
            number of steps.
    """
    if fill == "none" and world_size > 1 and not drop_last:
        raise ConfigurationError(
            f"fill='none' is for one rank, but there are {world_size}, and all of them must take "
            "the same number of steps. Use fill='filler' for evaluation and prediction, and "
            "fill='repeat' for training."
        )
    steps: list[list[Batch]] = []
    left_over: list[Batch] = []
    for bucket in range(len(batch_sizes) - 1, -1, -1):
        rows, size = rows_of_bucket[bucket], batch_sizes[bucket]
        end = len(rows) - len(rows) % size if drop_last else len(rows)
        batches = [Batch(bucket, rows[start : start + size]) for start in range(0, end, size)]
        whole = len(batches) - len(batches) % world_size
        steps += [batches[i : i + world_size] for i in range(0, whole, world_size)]
        left_over += batches[whole:]
    steps += [left_over[i : i + world_size] for i in range(0, len(left_over), world_size)]
    if steps and len(steps[-1]) < world_size:
        if drop_last:
            steps.pop()
        else:
            steps[-1] = _halved(steps[-1], world_size)
    if fill == "none":
        return steps
    return [
        [_filled(batch, batch_sizes[batch.bucket], rows_of_bucket, fill) for batch in step]
        for step in steps
    ]


def _halved(batches: list[Batch], number: int) -> list[Batch]:
    """Make ``number`` batches of fewer, so that no rank is without rows if there are enough."""
    batches = list(batches)
    while len(batches) < number:
        largest = max(range(len(batches)), key=lambda i: len(batches[i].rows))
        batch = batches[largest]
        half = (len(batch.rows) + 1) // 2
        batches[largest : largest + 1] = [
            Batch(batch.bucket, batch.rows[:half], int(batch.rows[0])),
            Batch(batch.bucket, batch.rows[half:], int(batch.rows[0])),
        ]
    return batches


def _filled(batch: Batch, size: int, rows_of_bucket: Sequence[Rows], fill: Fill) -> Batch:
    missing = size - len(batch.rows)
    if not missing:
        return batch
    if fill == "repeat":
        of_bucket = rows_of_bucket[batch.bucket]
        again: Any = of_bucket[np.arange(missing) % len(of_bucket)]
        return Batch(batch.bucket, np.concatenate([batch.rows, again]))
    # The last row, as padding to a captured batch size repeats it too; all-masked rows give NaN.
    filler = int(batch.rows[-1]) if len(batch.rows) else batch.filler
    return Batch(batch.bucket, batch.rows, filler, missing)
