"""The metrics of one stage, of each of its dataloaders."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from lightning_gaudi.modules.heads import Head
from lightning_gaudi.modules.scores import Scores


class StageScores:
    """Metrics from a stage's start to its end.

    Args:
        head: Makes them.
    """

    def __init__(self, head: Head) -> None:
        self._head = head
        self._by_loader: dict[int, dict[str, Scores]] = {}

    def begin(self, num_loaders: int, device: torch.device) -> None:
        """Make new metrics, on all ranks alike, whichever of them get batches."""
        self._by_loader.clear()
        for dataloader_idx in range(num_loaders):
            self.of(dataloader_idx, device)

    def of(self, dataloader_idx: int, device: torch.device) -> dict[str, Scores]:
        """The metrics of a dataloader."""
        if dataloader_idx not in self._by_loader:
            made = self._head.make_scores()
            self._by_loader[dataloader_idx] = {n: score.to(device) for n, score in made.items()}
        return self._by_loader[dataloader_idx]

    def end(self, stage: str) -> dict[str, Tensor]:
        """Compute the metrics over all ranks, and forget them.

        Returns:
            Values by name, those of dataloaders after the first with ``/dataloader_1`` and so on.
        """
        values: dict[str, Tensor] = {}
        for dataloader_idx, scores in self._by_loader.items():
            behind = f"/dataloader_{dataloader_idx}" if dataloader_idx else ""
            for score in scores.values():
                computed = cast("dict[str, Tensor]", score.compute())
                values |= {f"{stage}/{name}{behind}": value for name, value in computed.items()}
        self._by_loader.clear()
        return values
