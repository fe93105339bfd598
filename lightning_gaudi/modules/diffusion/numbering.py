"""Which row of the data set a batch's rows are: seeds follow from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.diffusion.options import whole_number


class RowNumbers:
    """Numbers rows by what they say, else by what the dataloader's sampler says, else by count."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def restart(self) -> None:
        """Count from 0 again, in every dataloader."""
        self._counts.clear()

    def of(
        self,
        rows: Sequence[Mapping[str, Any]],
        trainer: Trainer | None,
        batch_idx: int,
        dataloader_idx: int,
    ) -> list[int]:
        """Each row's place in its data set.

        Args:
            rows: The batch's rows.
            trainer: The trainer that predicts; None where a step is called by hand.
            batch_idx: The batch's place in its dataloader.
            dataloader_idx: The dataloader's place.

        Raises:
            ConfigurationError: There are several processes, and nothing tells a row's place.
        """
        first = self._counts.get(dataloader_idx, 0)
        self._counts[dataloader_idx] = first + len(rows)
        if all("index" in row for row in rows):
            return [whole_number("the index of a row", row["index"]) for row in rows]
        if trainer is not None and trainer.predicting:  # its sampler tells nothing of other calls
            seen = _seen_indices(trainer, batch_idx, dataloader_idx)
            if seen is not None and len(seen) == len(rows):
                return [int(index) for index in seen]
            if trainer.world_size > 1:
                raise ConfigurationError(
                    "seeds follow a row's index in the data set, and with several processes a row "
                    "must tell it: neither has the batch a column 'index' nor does the "
                    "dataloader's batch sampler say it. Add 'index' to each row."
                )
        return list(range(first, first + len(rows)))


def _seen_indices(trainer: Trainer, batch_idx: int, dataloader_idx: int) -> Sequence[Any] | None:
    """What Lightning's wrapper around the batch sampler has seen for a batch."""
    loaders = trainer.predict_dataloaders
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, (list, tuple)):
        loaders = loaders[dataloader_idx]
    seen = getattr(getattr(loaders, "batch_sampler", None), "seen_batch_indices", None)
    if not isinstance(seen, list) or batch_idx >= len(seen):
        return None
    indices: Sequence[Any] = seen[batch_idx]
    return indices
