"""`PredictionOrder`: ``trainer.predict`` returns rows, in the data's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils.data import IterableDataset
from typing_extensions import override

from lightning_gaudi.callbacks.warmup import flat_dataloaders
from lightning_gaudi.data.order import rows_by_number
from lightning_gaudi.errors import ConfigurationError


class PredictionOrder(BasePredictionWriter):
    """Makes ``trainer.predict`` return one prediction for each row, in the data set's order.

    Without it ``trainer.predict`` returns what ``predict_step`` returned for each batch of this
    rank, fillers and all. With it a batch's result is split into its rows (`split_rows` says what
    can be), fillers and repeated rows are dropped, and the rows of all ranks are put together. It
    works with any map-style data set, with `BucketBatchSampler` and with samplers of PyTorch's or
    Lightning's. With several dataloaders there is one list for each. Where there are no rows at
    all Lightning runs no loop and ``trainer.predict`` returns None.

    A module that predicts several times for each row has the number in ``predictions_per_row``, as
    `DiffusionSampler` has for several images of a prompt. A row's prediction is then a list of
    them, or a dict of such lists.

    A ``BasePredictionWriter`` that comes after it in ``callbacks`` is handed the rows with a batch
    of one row number each; one that comes before it, the batches with their row numbers.

    Args:
        gather: Which ranks get the rows: ``"all"`` of them, the ``"first"`` (the others' lists are
            then empty), or ``"none"``: each has its own rows only. To gather takes memory for the
            predictions of all ranks on each.

    Raises:
        ConfigurationError: ``gather`` is none of these. When a prediction starts: a dataloader has
            no row numbers. At its end: a prediction does not have its batch's rows.
    """

    def __init__(self, gather: Literal["all", "first", "none"] = "all") -> None:
        if gather not in ("all", "first", "none"):
            raise ConfigurationError(f"gather must be all, first or none, but it is {gather!r}.")
        super().__init__(write_interval="epoch")  # so that Lightning keeps the row numbers
        self.gather = gather

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out before the first batch whether the order will be known."""
        for number, loader in enumerate(flat_dataloaders(trainer.predict_dataloaders)):
            dataset = getattr(loader, "dataset", None)
            if getattr(loader, "batch_sampler", None) is None or isinstance(
                dataset, IterableDataset
            ):
                raise ConfigurationError(
                    f"PredictionOrder cannot know the order of dataloader {number}, "
                    f"{type(loader).__name__} over {type(dataset).__name__}: its batches have no "
                    "row numbers. Use a DataLoader with a map-style data set and a batch size, or "
                    "take PredictionOrder out."
                )

    @override
    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Replace the predictions of batches by those of rows, in the lists that Lightning has."""
        loaders = [predictions] if len(batch_indices) == 1 else predictions
        for of_loader, batches in zip(loaders, batch_indices, strict=True):
            rows = rows_by_number(
                of_loader,
                batches,
                gather=self.gather != "none",
                predictions_per_row=getattr(pl_module, "predictions_per_row", 1),
            )
            if self.gather == "first" and not trainer.is_global_zero:
                rows = {}
            of_loader[:] = rows.values()
            batches[:] = [[number] for number in rows]
