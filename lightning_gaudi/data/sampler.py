"""`BucketBatchSampler`: batches of rows of similar length, on one rank or many.

Lightning makes batch samplers anew, to track indices in prediction and to split rows over ranks:
it calls ``type(sampler)(row_sampler, batch_size=sampler.batch_size, drop_last=...)``. That call
names neither lengths nor buckets. So ``batch_size`` is an int that knows its sampler, and the call
gives that sampler back: it splits over the ranks by itself, so nothing is split twice.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch.distributed
from torch.utils.data import Sampler
from typing_extensions import Self, override

from lightning_gaudi.data.batching import Fill, Filler, count_steps, plan_steps
from lightning_gaudi.data.buckets import (
    Lengths,
    bucket_numbers,
    checked_buckets,
    checked_lengths,
    is_count,
)
from lightning_gaudi.data.collate import TooLong
from lightning_gaudi.errors import ConfigurationError

__all__ = ["BucketBatchSampler", "Filler"]


class _BatchSize(int):
    """A batch size that knows its sampler."""

    sampler: BucketBatchSampler


class BucketBatchSampler(Sampler[list[int]]):
    """Yields batches of row numbers, each batch of one bucket.

    The batch size is the same in every batch of a bucket. All ranks take the same number of steps,
    and at almost every step the same bucket, so that they take equal time: only what is left over
    of the buckets, fewer batches of each than there are ranks, makes steps of mixed buckets.
    Without ``shuffle`` rows come in the data's order inside a bucket and the largest bucket comes
    first, so that a lack of memory shows at the first step.

    Give it to a plain ``DataLoader(dataset, batch_sampler=..., collate_fn=BucketCollator(...))``;
    it works with Lightning's defaults, also with ``use_distributed_sampler=True``. (To predict
    fewer rows than there are ranks takes a `BucketLoader`.) Under `GaudiStrategy` a fit from a
    checkpoint goes on in the middle of an epoch; under other strategies with `make_resumable`.

    Args:
        lengths: Tokens in each row.
        buckets: Bucket sizes in tokens, for example from `choose_buckets`.
        batch_size: Rows in a batch of each rank.
        tokens_per_batch: Instead of ``batch_size``: tokens in a batch, padding included. A bucket's
            batch size is then this divided by the bucket, and at least 1.
        shuffle: Whether rows and steps come in a new random order each epoch (training).
        seed: Seed of the order, with the epoch.
        drop_last: Whether to leave out the rows of a bucket that make no whole batch and, on
            several ranks, the batches that make no whole step. Lightning takes them in prediction
            all the same.
        fill: How a batch with too few rows gets its size: ``"repeat"`` takes rows of the same
            bucket once more, ``"filler"`` takes `Filler` rows, ``"none"`` leaves it smaller (one
            rank only). By default ``"repeat"`` with ``shuffle``, else ``"none"`` on one rank and
            ``"filler"`` on several. With data sets other than ours a filler is a real row: its
            prediction is dropped by `in_data_order`, but metrics count it.
        too_long: Whether a row longer than the largest bucket is an error (``"raise"``), or goes
            into the largest (``"truncate"``, for a collator that truncates).
        rank: This process's number; by default that of ``torch.distributed``, else 0.
        world_size: The number of processes; by default that of ``torch.distributed``, else 1.

    Attributes:
        buckets: The sizes, ascending.
        batch_sizes: Rows in a batch, for each bucket.
        batch_size: Rows in a batch; with ``tokens_per_batch``, of the smallest bucket.
        epoch: The epoch, as `set_epoch` left it.

    Raises:
        ConfigurationError: An argument has a value that it cannot have, or a row is longer than
            the largest bucket, or there are no rows to shuffle.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make a sampler, or give back the one that Lightning means (see the top of the file)."""
        original = _asked_for(args, kwargs)
        if original is None:
            return super().__new__(cls)
        if kwargs.get("drop_last", original.drop_last) == original.drop_last:
            return original  # type: ignore[return-value]
        other = copy.copy(original)
        other.drop_last = kwargs["drop_last"]
        return other  # type: ignore[return-value]

    def __init__(
        self,
        lengths: Lengths,
        buckets: Sequence[int] | None = None,
        batch_size: int | None = None,
        *,
        tokens_per_batch: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        fill: Fill | None = None,
        too_long: TooLong = "raise",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if buckets is None:
            if isinstance(batch_size, _BatchSize):
                return  # __new__ gave back one that is made already
            raise ConfigurationError(
                "BucketBatchSampler needs buckets. Give sizes in tokens such as [32, 64, 128], or "
                "choose_buckets(lengths, 8)."
            )
        if (batch_size is None) == (tokens_per_batch is None):
            raise ConfigurationError(
                f"give either batch_size or tokens_per_batch, not both and not neither: they are "
                f"{batch_size} and {tokens_per_batch}."
            )
        _check(fill in (None, "repeat", "filler", "none"), "fill", fill, "repeat, filler or none")
        _check(too_long in ("raise", "truncate"), "too_long", too_long, "raise or truncate")
        _check(_is_whole(seed) and seed >= 0, "seed", seed, "0 or more")
        if (rank is None) != (world_size is None):
            raise ConfigurationError(
                f"give both rank and world_size or neither: they are {rank} and {world_size}."
            )
        if rank is not None and world_size is not None:
            _check(is_count(world_size), "world_size", world_size, "1 or more")
            _check(
                _is_whole(rank) and 0 <= rank < world_size,
                "rank",
                rank,
                f"from 0 to {world_size - 1}",
            )
        self.buckets = checked_buckets(buckets)
        if tokens_per_batch is not None:
            _check(is_count(tokens_per_batch), "tokens_per_batch", tokens_per_batch, "1 or more")
            self.batch_sizes = [max(1, tokens_per_batch // size) for size in self.buckets]
        else:
            assert batch_size is not None
            _check(is_count(batch_size), "batch_size", batch_size, "1 or more")
            self.batch_sizes = [int(batch_size)] * len(self.buckets)
        self.batch_size = _BatchSize(self.batch_sizes[0])
        self.batch_size.sampler = self
        self.drop_last = drop_last
        self.shuffle = shuffle
        self.seed = seed
        self.fill = fill
        self.epoch = 0
        values = checked_lengths(lengths)
        if too_long == "truncate":
            values = np.minimum(values, self.buckets[-1])
        if shuffle and not len(values):
            raise ConfigurationError(
                "shuffle=True is for training, and there are no rows to train on. Check the data "
                "set, or use shuffle=False for one that may be empty."
            )
        numbers = bucket_numbers(values, self.buckets)
        self.num_rows = len(values)
        self._rows_of_bucket = [np.flatnonzero(numbers == i) for i in range(len(self.buckets))]
        self._rank = rank
        self._world_size = world_size
        self._start = 0  # the step that the next iteration begins at
        self._next = 0  # the step that comes after the last one yielded

    @property
    def sampler(self) -> Self:
        """This object: Lightning sets the epoch on a batch sampler's ``sampler``."""
        return self

    def __len__(self) -> int:
        """Batches of a whole epoch on each rank, wherever an iteration begins."""
        counts = [len(rows) for rows in self._rows_of_bucket]
        steps = count_steps(counts, self.batch_sizes, self._ranks()[1], drop_last=self.drop_last)
        if self.shuffle and not steps:
            raise ConfigurationError(
                f"drop_last=True leaves nothing to train on: of {self.num_rows} rows no bucket has "
                f"a whole batch for each of {self._ranks()[1]} ranks (rows in buckets "
                f"{self.buckets}: {counts}, batch sizes {self.batch_sizes}). Use drop_last=False, "
                "fewer buckets or a smaller batch."
            )
        return steps

    @override
    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's batches, after `load_state_dict` those that are left."""
        rank, world_size = self._ranks()
        fill = self.fill
        if fill is None:
            fill = "repeat" if self.shuffle else "none" if world_size == 1 else "filler"
        rows = self._rows_of_bucket
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.shuffle:
            rows = [rng.permutation(of_bucket) for of_bucket in rows]
        steps = plan_steps(rows, self.batch_sizes, world_size, fill=fill, drop_last=self.drop_last)
        order = rng.permutation(len(steps)) if self.shuffle else np.arange(len(steps))
        start, self._start = self._start, 0
        for number in range(start, len(steps)):
            self._next = number + 1
            yield steps[order[number]][rank].indices()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch. Another epoch than the present begins at its start."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._start = self._next = 0

    def state_dict(self) -> dict[str, Any]:
        """Return where the iteration is.

        What was yielded counts. A dataloader with workers takes batches ahead of the training loop;
        `make_resumable` counts those that the loop had.
        """
        return {
            "epoch": self.epoch,
            "num_batches_yielded": self._next,
            "num_batches": len(self),
            **self._identity(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Begin the next iteration where ``state_dict`` was taken.

        After the last batch of an epoch that is the next epoch's start, whatever else has changed.

        Raises:
            ConfigurationError: The state is from the middle of an epoch of other data, or with
                other buckets, batch sizes or ranks, where its batches would not be these.
        """
        epoch, step = state_dict["epoch"], state_dict["num_batches_yielded"]
        if step >= state_dict["num_batches"]:
            epoch, step = epoch + 1, 0
        if step:
            for name, value in self._identity().items():
                if state_dict[name] != value:
                    raise ConfigurationError(
                        f"cannot go on in the middle of epoch {epoch}: {name} was "
                        f"{state_dict[name]} and is {value} now. Use the same data and sampler, or "
                        "a checkpoint from an epoch's end."
                    )
        self.epoch = epoch
        self._start = self._next = step

    def __copy__(self) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.batch_size = _BatchSize(self.batch_size)
        other.batch_size.sampler = other
        return other

    def _identity(self) -> dict[str, Any]:
        """What decides, with the epoch, which rows a batch has."""
        return {
            "num_rows": self.num_rows,
            "buckets": list(self.buckets),
            "batch_sizes": list(self.batch_sizes),
            "world_size": self._ranks()[1],
            "shuffle": self.shuffle,
            "seed": self.seed,
            "drop_last": self.drop_last,
        }

    def _ranks(self) -> tuple[int, int]:
        if self._rank is not None and self._world_size is not None:
            return self._rank, self._world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1


def _asked_for(args: tuple[Any, ...], kwargs: dict[str, Any]) -> BucketBatchSampler | None:
    """Return the sampler that a call of Lightning's means, or None for any other call."""
    size = kwargs.get("batch_size")
    if len(args) == 1 and "buckets" not in kwargs and isinstance(size, _BatchSize):
        return size.sampler
    return None


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check(is_right: bool, name: str, value: object, expected: str) -> None:
    if not is_right:
        raise ConfigurationError(f"{name} must be {expected}, but it is {value!r}.")
