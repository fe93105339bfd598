"""`TextDataModule`: text from files, in batches of few shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from lightning_gaudi.data.buckets import checked_buckets, choose_buckets, plan_buckets
from lightning_gaudi.data.collate import BucketCollator, Side, TooLong
from lightning_gaudi.data.loader import BucketLoader
from lightning_gaudi.data.resume import make_resumable
from lightning_gaudi.data.sampler import BucketBatchSampler
from lightning_gaudi.data.text_rows import (
    Objective,
    TextRows,
    TextSettings,
    labels_of,
    read_rows,
)
from lightning_gaudi.data.tokenizing import limit_of, load_tokenizer
from lightning_gaudi.errors import ConfigurationError

Split = Literal["train", "validate", "test", "predict"]
_SPLITS: dict[str | None, tuple[Split, ...]] = {
    "fit": ("train", "validate"),
    "validate": ("validate",),
    "test": ("test",),
    "predict": ("predict",),
    None: ("train", "validate", "test", "predict"),
}


class _Shapes(NamedTuple):
    """The buckets of a file's texts and of its targets."""

    buckets: list[int] | None
    target_buckets: list[int] | None


class TextDataModule(L.LightningDataModule):
    """Reads texts from files, tokenizes them once, and batches them by length.

    Files are ``.jsonl`` (an object a line), ``.csv`` (with a header) or ``.txt`` (a text a line).
    All stages share the shapes of few buckets, chosen so that the training texts need the least
    padding. Training batches all have the same number of rows. In validation, test and prediction
    every row counts exactly once: on one card the last batch of a bucket has fewer rows, on several
    it is filled up with rows whose labels are ignored (-100, or NaN where labels are floats).
    `PredictionOrder` gives predictions in the file's order.
    The attributes ``tokenizer``, ``buckets`` and ``label_names`` are what is used, after `setup`.

    Labels become int64 [B] (whole numbers and names), float32 [B] (numbers of which one in the
    training file is a fraction) or float32 [B, L] (lists). A fit can be resumed in
    the middle of an epoch.

    Args:
        tokenizer: The folder or name of a Transformers tokenizer, or a loaded one.
        train: The training file.
        validate: The validation file.
        test: The test file.
        predict: The file to predict for. It needs no labels.
        text_column: The column with the text.
        text_pair_column: The column with the second text, for pairs.
        label_column: The column with the label; None for data without labels.
        label_names: The classes' names in the order of their numbers. By default the names in the
            training file, sorted.
        target_column: The column with the text to write, for models that read one and write
            another; their labels are its tokens. With ``"causal-lm"`` the target follows the text,
            and only it is learned.
        objective: ``"causal-lm"`` learns each next token, ``"masked-lm"`` hidden ones. By default
            labels come from ``label_column`` or ``target_column``.
        max_length: The most tokens of a text, special ones included; by default the tokenizer's
            own limit.
        max_target_length: The most tokens of a target.
        num_buckets: The most buckets to choose.
        buckets: The bucket sizes in tokens, in place of choosing them.
        multiple_of: What chosen buckets are multiples of.
        num_target_buckets: The most buckets to choose for targets. Each pair of a bucket and one of
            these is a shape.
        target_buckets: The bucket sizes for targets, in place of choosing them.
        batch_size: Rows in a batch of each card.
        tokens_per_batch: In place of ``batch_size``: tokens in a batch, padding included.
        too_long: Whether a text of more tokens than ``max_length`` or the largest bucket is cut
            (``"truncate"``) or an error (``"raise"``).
        drop_last: Whether training leaves out the rows that make no whole batch. Otherwise some
            rows come twice in an epoch to fill it.
        shuffle: Whether training takes rows in a new random order each epoch.
        seed: Seed of that order, and of what ``"masked-lm"`` hides in validation and test.
        mask_fraction: Which part of the tokens ``"masked-lm"`` hides.
        num_workers: Processes that make batches ahead.
        padding_side: Where padding goes; by default where the tokenizer puts it, and left where
            ``"causal-lm"`` predicts, since generation goes on at the right.

    Raises:
        ConfigurationError: An argument has a value that it cannot have. `setup` raises it for what
            is wrong with the files, with the file and the line.
    """

    def __init__(
        self,
        tokenizer: str | Any,
        *,
        train: str | Path | None = None,
        validate: str | Path | None = None,
        test: str | Path | None = None,
        predict: str | Path | None = None,
        text_column: str = "text",
        text_pair_column: str | None = None,
        label_column: str | None = "label",
        label_names: Sequence[str] | None = None,
        target_column: str | None = None,
        objective: Objective | None = None,
        max_length: int | None = None,
        max_target_length: int | None = None,
        num_buckets: int = 8,
        buckets: Sequence[int] | None = None,
        multiple_of: int = 1,
        num_target_buckets: int = 1,
        target_buckets: Sequence[int] | None = None,
        batch_size: int = 32,
        tokens_per_batch: int | None = None,
        too_long: TooLong = "truncate",
        drop_last: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        mask_fraction: float = 0.15,
        num_workers: int = 0,
        padding_side: Side | None = None,
    ) -> None:
        super().__init__()
        choices: dict[str, tuple[Any, tuple[Any, ...]]] = {}
        choices["objective"] = (objective, (None, "causal-lm", "masked-lm"))
        choices["too_long"] = (too_long, ("raise", "truncate"))
        choices["padding_side"] = (padding_side, (None, "left", "right"))
        for name, (value, known) in choices.items():
            if value not in known:
                raise ConfigurationError(f"{name} must be one of {known}, but it is {value!r}.")
        # What the functions that are called in setup would refuse too, but only after reading.
        choose_buckets([1], num_buckets, multiple_of=multiple_of)
        choose_buckets([1], num_target_buckets)
        BucketBatchSampler([], [1], **_size_of(batch_size, tokens_per_batch), seed=seed)
        for name, number in (("max_length", max_length), ("max_target_length", max_target_length)):
            if number is not None and number < 1:
                raise ConfigurationError(f"{name} must be 1 or more, but it is {number}.")
        if not 0 < mask_fraction <= 1:
            raise ConfigurationError(
                f"mask_fraction must be above 0 and at most 1, but it is {mask_fraction}."
            )
        self.tokenizer: Any = tokenizer
        self.paths: dict[Split, str | Path | None] = {
            "train": train,
            "validate": validate,
            "test": test,
            "predict": predict,
        }
        self.settings = TextSettings(
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=label_column,
            target_column=target_column,
            objective=objective,
            too_long=too_long,
            mask_fraction=mask_fraction,
            seed=seed,
        )
        self.label_names = None if label_names is None else list(label_names)
        self.buckets = [] if buckets is None else checked_buckets(buckets)
        self.target_buckets = None if target_buckets is None else checked_buckets(target_buckets)
        self.max_length = max_length
        self.max_target_length = max_target_length
        self.num_buckets = num_buckets
        self.multiple_of = multiple_of
        self.num_target_buckets = num_target_buckets
        self.batch_size = batch_size
        self.tokens_per_batch = tokens_per_batch
        self.drop_last = drop_last
        self.shuffle = shuffle
        self.seed = seed
        self.num_workers = num_workers
        self.padding_side = padding_side
        if validate is None:  # a fit then has no validation, as if this class had no such method
            self.val_dataloader = super().val_dataloader  # type: ignore[method-assign]
        self._has_numbers = False
        self._given = _Shapes(self.buckets or None, self.target_buckets)
        self._shapes: dict[Split, _Shapes] = {}
        self._rows: dict[Split, TextRows] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenize the files that a stage needs, those that were not read yet.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"``, ``"predict"``, or None for all.

        Raises:
            ConfigurationError: A file is missing, empty or not what it must be.
        """
        self.tokenizer = load_tokenizer(self.tokenizer)
        train = self.paths["train"]
        if stage is not None and self.paths[_SPLITS[stage][0]] is None:
            raise self._without_file(_SPLITS[stage][0])
        if self.label_names is None and train is not None and self.settings.has_label_column:
            self.label_names, self._has_numbers = labels_of(train, self.settings)
        has_targets = self.settings.target_column is not None and self.settings.objective is None
        is_given = self._given.buckets and (self._given.target_buckets or not has_targets)
        if train is not None and not is_given:
            self._read("train")  # for its buckets, whatever the stage
        read = [split for split in _SPLITS[stage] if self.paths[split] is not None]
        for split in read:
            self._read(split)
        if read:
            self.buckets = self._shapes[read[0]].buckets or []
            self.target_buckets = self._shapes[read[0]].target_buckets

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches for training."""
        overfits = getattr(self.trainer, "overfit_batches", 0) > 0
        loader = self._loader("train", shuffle=self.shuffle and not overfits)
        if not len(loader):
            raise ConfigurationError(
                f"drop_last=True leaves nothing to train on: no bucket of {self.buckets} has a "
                f"whole batch among the {len(self._rows['train'].lengths)} rows of "
                f"{self.paths['train']}. Use drop_last=False, fewer buckets or a smaller batch."
            )
        return loader if self.trainer is None else make_resumable(loader, self.trainer)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches for validation."""
        return self._loader("validate")

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches for test."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Batches for prediction."""
        return self._loader("predict")

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint should have of the data: which class has which number."""
        return {"label_names": self.label_names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the data of a checkpoint.

        Raises:
            ConfigurationError: Classes have other numbers now.
        """
        saved = state_dict["label_names"]
        if self.label_names is None or saved is None or list(saved) == self.label_names:
            return
        raise ConfigurationError(
            f"the checkpoint was trained with label_names {list(saved)}, and they are "
            f"{self.label_names} now, so that labels would have other numbers. Give "
            "label_names as the checkpoint has them."
        )

    def _read(self, split: Split) -> None:
        if split in self._rows:
            return
        path = self.paths[split]
        assert path is not None
        own_limit = limit_of(self.tokenizer, self.max_length)
        of_training = self._shapes.get("train", _Shapes(None, None))
        buckets = self._given.buckets or of_training.buckets
        target_buckets = self._given.target_buckets or of_training.target_buckets
        limit = _smallest(own_limit, buckets)
        target_limit = _smallest(self.max_target_length, target_buckets)
        found = read_rows(
            path,
            self.settings,
            self.tokenizer,
            limit=limit,
            target_limit=target_limit,
            label_names=self.label_names,
            has_numbers=self._has_numbers,
            is_training=split == "train",
            has_labels=split != "predict",
        )
        if not len(found.lengths) and split != "predict":
            raise ConfigurationError(
                f"{path} has no rows, and it is the file to {split} with. Check the file."
            )
        buckets = buckets or self._chosen(found, own_limit)
        if found.target_lengths is not None and target_buckets is None:
            target_buckets = choose_buckets(found.target_lengths, self.num_target_buckets)
        self._rows[split] = found
        self._shapes[split] = _Shapes(buckets, target_buckets)
        if found.num_cut:
            is_asked = limit == own_limit or self._given.buckets is not None
            self._tell_of_cuts(f"{found.num_cut} texts", path, limit, "buckets", is_asked)
        if found.num_targets_cut:
            what = f"{found.num_targets_cut} targets"
            is_asked = target_limit == self.max_target_length or bool(self._given.target_buckets)
            self._tell_of_cuts(what, path, target_limit, "target_buckets", is_asked)

    def _tell_of_cuts(
        self, what: str, path: str | Path, limit: int | None, argument: str, is_asked: bool
    ) -> None:
        if is_asked:
            rank_zero_info(f"{what} in {path} were cut to {limit} tokens.")
            return
        rank_zero_warn(
            f"{what} in {path} were cut to {limit} tokens, the longest of {self.paths['train']}. "
            f"Give TextDataModule larger {argument} to keep them whole."
        )

    def _chosen(self, found: TextRows, limit: int | None) -> list[int]:
        if not len(found.lengths):
            return [1]
        # A model may have no positions beyond its limit for what rounding up adds.
        plans = plan_buckets(
            found.lengths, self.num_buckets, multiple_of=self.multiple_of, limit=limit
        )
        return plans[-1].buckets

    def _loader(self, split: Split, *, shuffle: bool = False) -> DataLoader[Any]:
        if split not in self._rows:
            self.setup({"train": "fit"}.get(split, split))
        found = self._rows[split]
        buckets = self._shapes[split].buckets or []
        is_training = split == "train"
        return BucketLoader(
            found.rows,
            batch_sampler=BucketBatchSampler(
                found.lengths,
                buckets,
                **_size_of(self.batch_size, self.tokens_per_batch),
                shuffle=shuffle,
                seed=self.seed,
                drop_last=is_training and self.drop_last,
                fill="repeat" if is_training else None,
            ),
            collate_fn=self._collator(split),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _collator(self, split: Split) -> BucketCollator:
        side = self.padding_side
        if side is None:
            generates = split == "predict" and self.settings.objective == "causal-lm"
            side = "left" if generates else self.tokenizer.padding_side
        shapes = self._shapes[split]
        return BucketCollator(
            shapes.buckets or [],
            pad_token_id=self.tokenizer.pad_token_id,
            padding_side=side,
            label_buckets=shapes.target_buckets,
            pad_values={"token_type_ids": self.tokenizer.pad_token_type_id},
        )

    def _without_file(self, split: Split) -> ConfigurationError:
        return ConfigurationError(
            f"there is no file to {split} with: give one with TextDataModule({split}=...)."
        )


def _size_of(batch_size: int, tokens_per_batch: int | None) -> dict[str, Any]:
    if tokens_per_batch is not None:
        return {"tokens_per_batch": tokens_per_batch}
    return {"batch_size": batch_size}


def _smallest(limit: int | None, buckets: list[int] | None) -> int | None:
    """The most tokens of a limit and the largest bucket, where there are any."""
    limits = [n for n in (limit, buckets[-1] if buckets else None) if n is not None]
    return min(limits, default=None)
