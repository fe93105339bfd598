"""Where the lazy graph breaks: one policy for all strategies.

In lazy mode the ops of a step pile up until something asks for their result. A break after the
backward and one after the optimizer give two graphs that are the same in every step, so that both
are compiled once; a break after each evaluation step keeps steps apart; one at the end of a stage
leaves nothing pending. What runs between stages (metric resets, epoch-end hooks) differs from what
runs between steps, so a break keeps it out of a stage's first step, which else would be a graph of
its own.
"""

from __future__ import annotations

from lightning_gaudi.runtime.loading import ExecutionMode
from lightning_gaudi.runtime.step import mark_step


class StepBoundary:
    """Marks the ends of steps, or does nothing where there is no lazy graph.

    Args:
        mode: The execution mode; only ``"lazy"`` marks.
        after_backward: Whether to mark between backward and optimizer.
    """

    def __init__(self, mode: ExecutionMode, *, after_backward: bool = True) -> None:
        self._is_lazy = mode == "lazy"
        self._after_backward = after_backward
        self._is_between_stages = True

    def at_stage_start(self) -> None:
        """A validation, test or predict stage begins."""
        if self._is_lazy:
            mark_step()

    def before_training_step(self, batch_idx: int) -> None:
        """A training step begins: the first of an epoch, the first after a validation, or another.

        Args:
            batch_idx: The batch's place in its epoch.
        """
        if self._is_lazy and (batch_idx == 0 or self._is_between_stages):
            mark_step()
        self._is_between_stages = False

    def after_backward(self) -> None:
        """A backward has run: of a batch, of a micro-batch, or in manual optimization."""
        if self._is_lazy and self._after_backward:
            mark_step()

    def after_optimizer_step(self) -> None:
        """An optimizer has stepped."""
        if self._is_lazy:
            mark_step()

    def after_evaluation_step(self) -> None:
        """A validation, test or predict step has run."""
        if self._is_lazy:
            mark_step()

    def at_stage_end(self) -> None:
        """A stage has ended; what its last hooks computed must not stay pending."""
        self._is_between_stages = True
        if self._is_lazy:
            mark_step()
