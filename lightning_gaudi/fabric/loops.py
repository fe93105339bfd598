"""Where the lazy graph breaks in loops that the user writes.

The Trainer says when a step or a stage begins and ends; in Fabric the loop is the user's. What it
does tell is a backward, an optimizer's step, and a loop's asking for its next batch. A batch that
was neither trained on nor ended otherwise by then was evaluated, and its ops are a step of their
own. When a loop begins, and where another one ran since its last batch, a break keeps what was
computed in between out of its next step, which else would be a graph of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_gaudi.step_boundary import StepBoundary


class LoopBoundary(StepBoundary):
    """A `StepBoundary` that counts, so that a loop can tell what happened to its batch.

    Attributes:
        num_ends: How many steps or parts of steps have ended.
        num_loops: How many loops over batches have begun.
    """

    num_ends = 0
    num_loops = 0

    @override
    def at_stage_start(self) -> None:
        """A loop over batches begins."""
        super().at_stage_start()
        self.num_ends += 1
        self.num_loops += 1

    @override
    def after_backward(self) -> None:
        """A backward has run; with or without a mark, its batch is one that was trained on."""
        super().after_backward()
        self.num_ends += 1

    @override
    def after_optimizer_step(self) -> None:
        """An optimizer has stepped."""
        super().after_optimizer_step()
        self.num_ends += 1

    @override
    def after_evaluation_step(self) -> None:
        """An evaluated batch is done with."""
        super().after_evaluation_step()
        self.num_ends += 1


class MarkedLoader:
    """A data loader that breaks the lazy graph between batches, where nothing else has.

    Has the attributes of the data loader that it wraps, as Fabric's own wrapper does.

    Args:
        dataloader: The data loader.
        boundary: Where the lazy graph breaks.
    """

    def __init__(self, dataloader: DataLoader[Any], boundary: LoopBoundary) -> None:
        self.__dict__.update(dataloader.__dict__)
        self._wrapped = dataloader
        self._boundary = boundary

    def __len__(self) -> int:
        return len(self._wrapped)

    def __iter__(self) -> Iterator[Any]:
        boundary = self._boundary
        boundary.at_stage_start()
        num_loops = boundary.num_loops
        for batch in self._wrapped:
            num_ends = boundary.num_ends
            yield batch
            # Before the next batch is fetched: the device works while the host waits for it.
            if boundary.num_ends == num_ends or boundary.num_loops != num_loops:
                boundary.after_evaluation_step()
                num_loops = boundary.num_loops

    def __getattr__(self, name: str) -> Any:
        # Where `copy` or `pickle` make an object without its attributes, there is nothing to ask.
        if name == "_wrapped":
            raise AttributeError(name)
        return getattr(self._wrapped, name)
