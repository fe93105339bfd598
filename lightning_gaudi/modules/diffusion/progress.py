"""A bar over denoising steps that goes with Lightning's own bar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from rich.progress import Progress

_DESCRIPTION = "Denoising"


class RichSteps:
    """A bar of a pipeline, as a further line of a Rich display; it is hidden at its end.

    It does what pipelines do with ``tqdm``: iterate, or update within a ``with`` block.

    Args:
        progress: The display.
        iterable: What to go through, one step each.
        total: The number of steps, where there is no iterable.
    """

    def __init__(
        self, progress: Progress, iterable: Iterable[Any] | None = None, total: int | None = None
    ) -> None:
        self._progress = progress
        self._iterable = () if iterable is None else iterable
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]
        # One task for all: it is not removed, for Lightning finds its own by their position.
        known = [task.id for task in progress.tasks if task.description == _DESCRIPTION]
        self._task = known[0] if known else progress.add_task(_DESCRIPTION, total=total)
        progress.reset(self._task, total=total, visible=True)

    def update(self, number: int = 1) -> None:
        """So many steps are done."""
        self._progress.update(self._task, advance=number)
        self._progress.refresh()

    def __enter__(self) -> RichSteps:
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.update(self._task, visible=False)

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self._iterable:
                yield item
                self.update()


@contextmanager
def step_bar(pipeline: Any, trainer: Trainer | None, show: bool | None) -> Iterator[None]:
    """Configure a pipeline's own bar, for as long as this lasts.

    Args:
        pipeline: A pipeline of Diffusers. What its user has set comes first.
        trainer: The trainer that predicts, if any.
        show: Whether to show a bar; None shows one where Lightning shows its own. It is a line
            below that one, of the same kind, so that they do not garble each other. No rank but
            the first shows one.
    """
    # There is no public way to ask what the user has set. Without it nothing but that is lost.
    before = dict(getattr(pipeline, "_progress_bar_config", None) or {})
    bar = trainer.progress_bar_callback if trainer is not None else None
    has_bar = isinstance(bar, (RichProgressBar, TQDMProgressBar)) and bar.is_enabled
    is_shown = has_bar if show is None else show
    if trainer is not None and not trainer.is_global_zero:
        is_shown = False
    is_shown = is_shown and not before.get("disable", False)
    display = getattr(bar, "progress", None) if has_bar else None
    ours = {"disable": not is_shown, "position": int(has_bar), "leave": False, "desc": _DESCRIPTION}
    pipeline.set_progress_bar_config(**{**ours, **before})
    is_ours = "progress_bar" not in vars(pipeline)
    if is_shown and is_ours and isinstance(display, Progress):
        pipeline.progress_bar = partial(RichSteps, display)
    try:
        yield
    finally:
        if is_ours:
            vars(pipeline).pop("progress_bar", None)
        pipeline.set_progress_bar_config(**before)
