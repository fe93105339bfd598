"""A dataloader over buckets that Lightning leaves to split its rows by itself."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, DistributedSampler


class BucketLoader(DataLoader[Any]):
    """A ``DataLoader`` whose `BucketBatchSampler` is known to split rows over ranks.

    Lightning sees a ``DistributedSampler`` in ``sampler`` and adds none of its own. With a plain
    ``DataLoader`` it does, and `BucketBatchSampler` passes it over; but Lightning then warns of
    repeated rows in validation, and refuses to predict fewer rows than there are ranks.
    """

    @property
    def sampler(self) -> Any:
        """A sampler that nothing draws from, since batches come from ``batch_sampler``."""
        return DistributedSampler(self.dataset, num_replicas=1, rank=0, shuffle=False)

    @sampler.setter
    def sampler(self, sampler: Any) -> None:
        """Pass over what ``DataLoader.__init__`` sets."""
