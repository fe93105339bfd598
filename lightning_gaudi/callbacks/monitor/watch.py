"""A record of one run, with what only the Trainer knows where a card tells less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_gaudi.callbacks.graph import HPUGraphCallback
from lightning_gaudi.runtime.recording import Counts, Taken, open_recording


class Watch:
    """An open record of the device. Close it.

    Args:
        trainer: Whose callbacks count HPU graphs.
        host_reads: As for `open_recording`.

    Attributes:
        has_lines: Whether compilations come with reasons and source lines.
        has_host_reads: Whether host reads are seen.
    """

    def __init__(self, trainer: Trainer, *, host_reads: bool) -> None:
        self._graphs_before = _graph_counts(trainer)
        self._recording = open_recording(host_reads=host_reads)
        self.has_lines = self._recording.has_lines
        self.has_host_reads = self._recording.has_host_reads

    def take(self, trainer: Trainer, batch: Any = None) -> Taken:
        """What has happened since the last call.

        Args:
            trainer: The one of before.
            batch: The step's batch: on a card its shapes are all there is to explain compilations.
        """
        taken = self._recording.take()
        if self.has_lines:
            return taken
        # A card does not count graphs, but the callback that makes them does.
        before, self._graphs_before = self._graphs_before, _graph_counts(trainer)
        captures, replays = (
            now - then for now, then in zip(self._graphs_before, before, strict=True)
        )
        events = taken.events
        if batch is not None and taken.counts.compilations:
            shapes = f"batch of {_shapes_of(batch)}"
            events = tuple(
                [replace(e, detail=shapes) if e.kind == "compile" else e for e in events]
            )
        counts = taken.counts + Counts(captures=captures, replays=replays)
        return Taken(counts=counts, events=events)

    def close(self) -> None:
        """End the record."""
        self._recording.close()


def _graph_counts(trainer: Trainer) -> tuple[int, int]:
    """Captures and replays of the callbacks that make HPU graphs."""
    stats = [
        callback.stats
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, HPUGraphCallback)
    ]
    return sum(s.captures for s in stats), sum(s.replays for s in stats)


def _shapes_of(batch: Any) -> str:
    """A batch's tensors in words: ``"input_ids [8, 37]:int64"``."""
    items: list[tuple[str, Any]] = []
    if isinstance(batch, Mapping):
        items = [(f"{name} ", value) for name, value in batch.items()]
    elif isinstance(batch, (list, tuple)):
        items = [("", value) for value in batch]
    else:
        items = [("", batch)]
    shapes = [
        f"{name}{list(value.shape)}:{str(value.dtype).removeprefix('torch.')}"
        for name, value in items
        if isinstance(value, Tensor)
    ]
    return ", ".join(shapes) or type(batch).__name__
