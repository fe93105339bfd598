"""A fit that goes on from a checkpoint draws the random numbers that it would have drawn unbroken.

Each checkpoint of a fit holds, for every rank, the states of the generators and the place in a
shuffled dataloader's order. They are put back when a fit goes on from it, and only then: before the
dataloader's iterator is made where an epoch is to begin, for that draws an order; after it in the
middle of one, whose order is drawn already.

What cannot be had: random numbers that the workers of a dataloader draw in the middle of an epoch;
an order drawn by a data set or batch sampler of another kind, unless it has a state of its own; and
what a validation would have drawn that was to follow the very step after which was saved, for
Lightning passes over it. (Each pass over a dataloader draws a number at least, for its workers.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from lightning_gaudi.checkpoint import random_states
from lightning_gaudi.checkpoint.random_states import States
from lightning_gaudi.data.shuffled import ResumableOrder, resumable_order

KEY = "gaudi_random_states"


class ExactResume:
    """Puts the states of random numbers into checkpoints, and back into a fit that goes on."""

    def __init__(self) -> None:
        self._states: States | None = None
        self._num_prepared = 0
        self._marked: list[Any] = []

    # --- into a checkpoint ----------------------------------------------------------------------

    def add_to(
        self, checkpoint: dict[str, Any], trainer: Trainer, gather: Callable[[Any], list[Any]]
    ) -> None:
        """Add this and the other ranks' states to a checkpoint that a fit can go on from.

        Args:
            checkpoint: What will be saved.
            trainer: Whose it is.
            gather: Gives what each rank passes to it, by rank; asked in every rank.
        """
        if trainer.state.fn != TrainerFn.FITTING or "optimizer_states" not in checkpoint:
            return
        self._unmark()
        mine = random_states.collect() | {"orders": _orders(trainer)}
        if trainer.state.status == TrainerStatus.INTERRUPTED:
            # Others may not come: only this rank may have failed.
            by_rank = {trainer.global_rank: mine}
        else:
            by_rank = dict(enumerate(gather(mine)))
        checkpoint[KEY] = {"world_size": trainer.world_size, "ranks": by_rank}

    # --- out of a checkpoint --------------------------------------------------------------------

    def take_from(self, checkpoint: dict[str, Any], trainer: Trainer) -> None:
        """Keep this rank's states until the fit begins.

        Args:
            checkpoint: What was loaded.
            trainer: Who goes on with it.
        """
        self._states, self._num_prepared = None, 0
        saved = checkpoint.get(KEY)
        if saved is None or trainer.state.fn != TrainerFn.FITTING:
            return
        self._states = saved["ranks"].get(trainer.global_rank)
        if saved["world_size"] != trainer.world_size:
            rank_zero_warn(
                f"The checkpoint is of a run with {saved['world_size']} processes, and this one "
                f"has {trainer.world_size}. Weights and optimizers go on as they were. Each rank "
                "that was there before draws its random numbers on; other ranks begin with their "
                "own, and the order of the data is another."
            )
            if self._states is not None:
                self._states = self._states | {"orders": []}

    def prepare(self, dataloader: Any, trainer: Trainer) -> None:
        """Before the iterator of a training dataloader is made.

        Args:
            dataloader: One of those that the fit iterates over, in their order.
            trainer: Who does.
        """
        order = resumable_order(dataloader)
        if order is not None:
            # Lightning does this too, but after workers have begun to draw batches.
            set_epoch = getattr(dataloader.sampler, "set_epoch", None)
            if callable(set_epoch):
                progress: Any = trainer.fit_loop.epoch_progress.current
                set_epoch(progress.processed)
        if self._states is None:
            return
        random_states.restore(self._states)
        orders = self._states["orders"]
        saved = orders[self._num_prepared] if self._num_prepared < len(orders) else {}
        self._num_prepared += 1
        if "generator" in saved and getattr(dataloader, "generator", None) is not None:
            dataloader.generator.set_state(saved["generator"])
        if order is not None and saved.get("num_batches"):
            order.go_on(saved)
            # So that Lightning does not warn that the place in the data is lost. Not for longer:
            # it would save a state of the dataloader, which stock Lightning then cannot place.
            dataloader.state_dict, dataloader.load_state_dict = dict, _nothing
            self._marked.append(dataloader)

    def at_train_start(self) -> None:
        """After the iterators are made, before the first batch."""
        if self._marked and self._states is not None:
            random_states.restore(self._states)
        self._states = None

    def at_first_batch(self) -> None:
        """When the loop has looked at the dataloaders."""
        self._unmark()

    def _unmark(self) -> None:
        for dataloader in self._marked:
            vars(dataloader).pop("state_dict", None)
            vars(dataloader).pop("load_state_dict", None)
        self._marked = []


def _orders(trainer: Trainer) -> list[States]:
    """Of each training dataloader: the place in its order, and the state of its generator."""
    if trainer.train_dataloader is None:
        return []
    # Processed, not ready or completed: right in on_train_batch_end and after an exception.
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    trained = progress.processed
    is_new_epoch = trained >= trainer.num_training_batches
    states = []
    for dataloader in CombinedLoader(trainer.train_dataloader, "max_size").flattened:
        state: States = {}
        order = getattr(getattr(dataloader, "batch_sampler", None), "sampler", None)
        if isinstance(order, ResumableOrder) and trained and not is_new_epoch:
            state |= order.state(trained) or {}
        generator = dataloader.generator if isinstance(dataloader, DataLoader) else None
        if isinstance(generator, torch.Generator):
            state["generator"] = generator.get_state()
        states.append(state)
    return states


def _nothing(_: Any) -> None:
    """Stands for a dataloader's ``load_state_dict`` where there is none to load."""
