"""Go on in the middle of an epoch with the batches of a plain, shuffled ``DataLoader``.

Such a dataloader draws its order from PyTorch's global generator when an epoch begins. Here the
generators' states of that moment are kept. To go on, the same order is drawn from them once more
and what was trained on is skipped, without loading it; then the generators are as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from lightning_gaudi.checkpoint import random_states
from lightning_gaudi.checkpoint.random_states import States


class ResumableOrder(Sampler[Any]):
    """A sampler whose current order can be drawn again, up to a place.

    Args:
        sampler: The dataloader's own.
        batch_size: Rows that make a batch.
    """

    def __init__(self, sampler: Any, batch_size: int) -> None:
        self._sampler = sampler
        self._batch_size = batch_size
        self._begin: States | None = None
        self._skip = 0

    def __iter__(self) -> Iterator[Any]:
        if not self._skip:
            self._begin = self._collect()
            whole: Iterator[Any] = iter(self._sampler)
            return whole
        assert self._begin is not None
        rows, self._skip = self._skip * self._batch_size, 0
        now = self._collect()
        self._restore(self._begin)
        order: Iterator[Any] = iter(self._sampler)
        for _ in islice(order, rows):
            pass
        # With a generator of its own a sampler draws on, and it has drawn this much of it.
        self._restore({name: state for name, state in now.items() if name != "generator"})
        return order

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_sampler"], name)

    def state(self, num_batches: int) -> States | None:
        """The order that is being drawn from, and how many batches of it are done with.

        Returns:
            None before the first batch.
        """
        if self._begin is None:
            return None
        return {"begin": self._begin, "num_batches": num_batches}

    def go_on(self, state: States) -> None:
        """Let the next iteration follow on the batches that `state` counts."""
        self._begin, self._skip = state["begin"], state["num_batches"]

    def _collect(self) -> States:
        states = random_states.collect_host()
        own = getattr(self._sampler, "generator", None)
        if isinstance(own, torch.Generator):
            states["generator"] = own.get_state()
        return states

    def _restore(self, states: States) -> None:
        random_states.restore(states)
        own = getattr(self._sampler, "generator", None)
        if isinstance(own, torch.Generator) and "generator" in states:
            own.set_state(states["generator"])


def resumable_order(dataloader: Any) -> ResumableOrder | None:
    """Make the order of a dataloader's rows one that can be gone on with.

    Args:
        dataloader: A training dataloader; its batch sampler then draws from a `ResumableOrder`.

    Returns:
        The order; None where the dataloader has a state or batch sampler of its own, no batches or
        no order.
    """
    if not isinstance(dataloader, DataLoader) or isinstance(dataloader.dataset, IterableDataset):
        return None
    batches = dataloader.batch_sampler
    if type(batches) is not BatchSampler or hasattr(dataloader, "load_state_dict"):
        return None
    if not isinstance(batches.sampler, ResumableOrder):
        batches.sampler = ResumableOrder(batches.sampler, batches.batch_size)
    return batches.sampler
