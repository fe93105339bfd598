"""`PromptDataModule`: prompts and settings from a file, for `DiffusionSampler`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from lightning_gaudi.data.loader import BucketLoader
from lightning_gaudi.data.prompt_rows import (
    PromptRows,
    check_extra_columns,
    count_rows,
    read_prompts,
)
from lightning_gaudi.data.sampler import BucketBatchSampler
from lightning_gaudi.errors import ConfigurationError

_NOTE = "You have overridden `transfer_batch_to_device` in `LightningModule` but have passed in a"


class PromptDataModule(L.LightningDataModule):
    """Gives `DiffusionSampler` the rows to make images of.

    A file is a ``.txt`` (a prompt a line; empty lines are passed over), a ``.csv`` (with a header)
    or a ``.jsonl`` (an object a line). The latter two have a column ``prompt`` or ``class_labels``,
    and may have ``seed`` and arguments of the pipeline by row: ``negative_prompt``,
    ``guidance_scale``, ``num_inference_steps``, ``strength``, ``height``, ``width`` ..., and
    ``image``, ``mask_image`` or ``control_image`` with paths that begin in the file's folder. A
    cell that is empty (``.csv``) or ``null`` (``.jsonl``) leaves the setting to the sampler. Other
    columns are an error.

    Each row has its number in the file as ``index``; seeds follow from it. On several cards each
    takes its part of the rows, all take the same number of steps, and a row that only fills a
    batch up is marked ``is_filler``, so that no image is made for it. `PredictionOrder` gives
    predictions in the file's order.

    Args:
        predict: The file.
        num_images: Instead of a file: how many images to make with a pipeline that takes no
            condition. The rows are then ``{"index": i}``.
        batch_size: Rows in a batch of each card; by default as many as fill a batch of the
            sampler's (its ``batch_size`` over its ``num_images_per_prompt``, or a multiple).
        prompt_column: What the file calls the prompt.
        extra_columns: Columns that are handed on to the prediction as they are.
        num_workers: Processes that open image files ahead.

    Raises:
        ConfigurationError: There is neither a file nor a number, or both; or an argument has a
            value that it cannot have. `setup` raises it for what is wrong with the file, with the
            file and the line.
    """

    def __init__(
        self,
        predict: str | Path | None = None,
        *,
        num_images: int | None = None,
        batch_size: int | None = None,
        prompt_column: str = "prompt",
        extra_columns: Sequence[str] = (),
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if (predict is None) == (num_images is None):
            raise ConfigurationError(
                "PromptDataModule takes either predict, a file of prompts, or num_images, for a "
                f"pipeline without prompts; they are {predict!r} and {num_images!r}."
            )
        for name, value in (("num_images", num_images), ("batch_size", batch_size)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigurationError(
                    f"{name} must be a whole number of 1 or more, but it is {value!r}."
                )
        if num_workers < 0:
            raise ConfigurationError(f"num_workers must be 0 or more, but it is {num_workers}.")
        check_extra_columns(extra_columns)
        self.path = predict
        self.num_images = num_images
        self.batch_size = batch_size
        self.prompt_column = prompt_column
        self.extra_columns = tuple(extra_columns)
        self.num_workers = num_workers
        self._rows: PromptRows | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read the file, unless that is done.

        Args:
            stage: ``"predict"``, or None.

        Raises:
            ConfigurationError: The file is missing, has no rows, or is not what it must be.
        """
        # Lightning's note that the sampler, which takes its batches on the host, is heeded.
        warnings.filterwarnings("ignore", message=_NOTE)
        if self._rows is not None:
            return
        if self.num_images is not None:
            self._rows = count_rows(self.num_images)
        else:
            assert self.path is not None
            self._rows = read_prompts(
                self.path, prompt_column=self.prompt_column, extra_columns=self.extra_columns
            )

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches, each a list of rows."""
        self.setup("predict")
        assert self._rows is not None
        # All rows are of one kind: one bucket. The sampler splits over ranks without repeating any.
        sampler = BucketBatchSampler([1] * len(self._rows), [1], self._rows_of_a_batch())
        return BucketLoader(
            self._rows,
            batch_sampler=sampler,
            collate_fn=list,
            num_workers=self.num_workers,
        )

    def _rows_of_a_batch(self) -> int:
        if self.batch_size is not None:
            return self.batch_size
        module = None if self.trainer is None else self.trainer.lightning_module
        options = getattr(module, "options", None)  # `DiffusionSampler.options`
        images = getattr(options, "batch_size", 1)
        return int(images) // math.gcd(images, getattr(options, "num_images_per_prompt", 1))
