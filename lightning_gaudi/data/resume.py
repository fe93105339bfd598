"""Go on in the middle of an epoch: the place in the data, saved with the trainer's checkpoint.

Lightning saves the state of a training dataloader that has ``state_dict`` and ``load_state_dict``,
and loads it before it iterates. A plain ``DataLoader`` has neither, and its batch sampler alone
does not know the place: workers draw batches ahead of the training loop. So a dataloader with a
`BucketBatchSampler` is given both here, and they count the batches that the loop has trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from lightning_gaudi.data.sampler import BucketBatchSampler


def make_resumable(dataloader: Any, trainer: Trainer) -> Any:
    """Let ``trainer`` save and load the place in a training dataloader's epoch.

    A dataloader without a `BucketBatchSampler`, or with a state of its own, is left as it is. One
    that had another trainer follows this one. `GaudiStrategy` and `TextDataModule` do this by
    themselves.

    Args:
        dataloader: What a fit iterates over.
        trainer: The trainer that runs it.

    Returns:
        The same object, with ``state_dict`` and ``load_state_dict``.
    """
    sampler = getattr(dataloader, "batch_sampler", None)
    if (
        isinstance(dataloader, DataLoader)
        and isinstance(sampler, BucketBatchSampler)
        and not _has_own_state(dataloader)
    ):
        if getattr(trainer, "overfit_batches", 0) and sampler.shuffle:
            rank_zero_warn(
                "overfit_batches is to take the same batches in every epoch, and "
                "BucketBatchSampler(shuffle=True) makes others in each. Use shuffle=False."
            )
        # Lightning does this too, but after workers have begun to draw batches, and a fit that
        # goes on after an epoch's end iterates only once before its first epoch.
        progress: Any = trainer.fit_loop.epoch_progress.current
        sampler.set_epoch(progress.processed)
        place = _Place(sampler, trainer)
        dataloader.state_dict = place.state_dict
        dataloader.load_state_dict = place.load_state_dict
    return dataloader


def _has_own_state(dataloader: Any) -> bool:
    """Whether a dataloader has a state that did not come from here, for this trainer or another."""
    of = getattr(dataloader, "state_dict", None)
    return of is not None and not isinstance(getattr(of, "__self__", None), _Place)


class _Place:
    """Where a training loop is in its data."""

    def __init__(self, sampler: BucketBatchSampler, trainer: Trainer) -> None:
        self._sampler = sampler
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Return the sampler's state after the last batch that was trained on."""
        state = self._sampler.state_dict()
        # Processed, not ready or completed: right in on_train_batch_end and after an exception.
        progress: Any = self._trainer.fit_loop.epoch_loop.batch_progress.current
        trained = progress.processed
        num_batches = state["num_batches"]
        if trained >= self._trainer.num_training_batches:  # limit_train_batches ends epochs early
            trained = num_batches
        elif num_batches:
            trained %= num_batches  # a dataloader that starts again beside a longer one
        return state | {"num_batches_yielded": trained}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Begin the next iteration after that batch."""
        self._sampler.load_state_dict(state_dict)
