"""`BucketCollator`: rows of many lengths become a batch in one of a few shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_gaudi.data.buckets import bucket_of, checked_buckets
from lightning_gaudi.errors import ConfigurationError

Side = Literal["left", "right"]
TooLong = Literal["raise", "truncate"]
Row = Mapping[str, Any]

# What Transformers' own padding writes; every other field is padded with 0.
_PAD_VALUES = {"special_tokens_mask": 1}
_DTYPES = {"i": torch.int64, "u": torch.int64, "f": torch.float32, "b": torch.bool}


class BucketCollator:
    """Pads rows to the smallest bucket that holds the longest of them, and stacks them.

    A row is a mapping in Transformers' own names: lists, numpy arrays or tensors, with at least
    ``input_ids``. Fields of one dimension that are as long as the row's ``input_ids`` in every row
    are padded; an ``attention_mask`` is added where there is none. Everything else must have one
    shape in all rows and is stacked. So is a ``labels`` field of floats, which belongs to the row
    and not to its tokens. Whole numbers become int64, floats float32.

    The object can be pickled, so it works in dataloader workers.

    Args:
        buckets: Lengths to pad to, in tokens.
        pad_token_id: What ``input_ids`` are padded with.
        padding_side: Where padding goes.
        label_pad_id: What ``labels`` of a row's length are padded with; losses ignore -100.
        label_buckets: Lengths to pad ``labels`` and fields named ``decoder_...`` to, for models
            that read one sequence and write another. Without it they are fields like others.
        too_long: What becomes of a row longer than the largest bucket: ``"raise"``, or
            ``"truncate"`` cuts it without regard for special tokens.
        truncation_side: Where ``"truncate"`` cuts.
        pad_values: What further fields are padded with, by name.

    Attributes:
        buckets: The lengths, ascending.

    Raises:
        ConfigurationError: An argument has a value that it cannot have.
    """

    def __init__(
        self,
        buckets: Sequence[int],
        *,
        pad_token_id: int,
        padding_side: Side = "right",
        label_pad_id: int = -100,
        label_buckets: Sequence[int] | None = None,
        too_long: TooLong = "raise",
        truncation_side: Side = "right",
        pad_values: Mapping[str, float] | None = None,
    ) -> None:
        _check_choice("padding_side", padding_side, ("left", "right"))
        _check_choice("truncation_side", truncation_side, ("left", "right"))
        _check_choice("too_long", too_long, ("raise", "truncate"))
        if not isinstance(pad_token_id, int) or isinstance(pad_token_id, bool):
            raise ConfigurationError(
                f"pad_token_id must be a token's number, but it is {pad_token_id!r}. Set "
                "tokenizer.pad_token first, for example to tokenizer.eos_token."
            )
        self.buckets = checked_buckets(buckets)
        self.label_buckets = None if label_buckets is None else checked_buckets(label_buckets)
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.too_long = too_long
        self.pad_values: dict[str, float] = {
            **_PAD_VALUES,
            "input_ids": pad_token_id,
            "decoder_input_ids": pad_token_id,
            "labels": label_pad_id,
            **(pad_values or {}),
        }

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Make a batch.

        Args:
            rows: One mapping a row, all with the same names.

        Returns:
            Tensors on the CPU by name: [rows, bucket] for what belongs to tokens, [rows, ...] for
            what belongs to rows. They share no memory with the rows.

        Raises:
            ConfigurationError: Rows lack ``input_ids`` or have different names, a row is too long,
                or a field can be neither padded nor stacked.
        """
        columns = _columns(rows)
        lengths = [len(ids) for ids in columns["input_ids"]]
        if "attention_mask" not in columns:
            columns["attention_mask"] = [torch.ones(n, dtype=torch.int64) for n in lengths]
        targets = [name for name in columns if self.label_buckets and is_target(name)]
        batch = {}
        if targets:
            for name in targets:
                _check_is_sequence(name, columns[name])
            target_lengths = [max(len(columns[n][i]) for n in targets) for i in range(len(rows))]
            target_bucket = self._bucket(target_lengths, self.label_buckets or [], "labels")
        bucket = self._bucket(lengths, self.buckets, "input_ids")
        for name, values in columns.items():
            if name in targets:
                batch[name] = self._padded(name, values, target_bucket)
            elif _belongs_to_tokens(name, values, lengths):
                batch[name] = self._padded(name, values, bucket)
            else:
                batch[name] = _stacked(name, values)
        return batch

    def _bucket(self, lengths: Sequence[int], buckets: list[int], name: str) -> int:
        longest = max(lengths)
        if longest <= buckets[-1]:
            return bucket_of(longest, buckets)
        if self.too_long == "raise":
            raise ConfigurationError(
                f"a row has {longest} tokens in {name!r}, more than the largest bucket of "
                f"{buckets}. Add a larger bucket, tokenize with truncation and "
                f"max_length={buckets[-1]}, or cut rows with too_long='truncate'."
            )
        return buckets[-1]

    def _padded(self, name: str, values: list[Tensor], bucket: int) -> Tensor:
        dtype = values[0].dtype
        for value in values:
            dtype = torch.promote_types(dtype, value.dtype)
        padded = torch.full((len(values), bucket), self.pad_values.get(name, 0), dtype=dtype)
        for row, value in zip(padded, values, strict=True):
            if len(value) > bucket:
                value = value[:bucket] if self.truncation_side == "right" else value[-bucket:]
            if self.padding_side == "right":
                row[: len(value)] = value
            else:
                row[bucket - len(value) :] = value
        return padded


def _columns(rows: Sequence[Row]) -> dict[str, list[Tensor]]:
    """Give each field's values in all rows."""
    if not rows:
        raise ConfigurationError("a batch needs rows, but there are none.")
    first = rows[0]
    if not isinstance(first, Mapping) or "input_ids" not in first:
        got = sorted(first) if isinstance(first, Mapping) else type(first).__name__
        raise ConfigurationError(
            f"rows must be mappings with 'input_ids', but a row is {got}. Give the rows as a "
            "Transformers tokenizer returns them for one text."
        )
    for row in rows:
        if row.keys() != first.keys():
            raise ConfigurationError(
                f"rows of a batch must have the same fields, but one has {sorted(first)} and "
                f"another {sorted(row)}. Give every row all fields."
            )
    columns = {name: [_tensor(name, row[name]) for row in rows] for name in first}
    for ids in columns["input_ids"]:
        if ids.ndim != 1:
            raise ConfigurationError(
                f"a row's input_ids must have one dimension, but they are of shape "
                f"{list(ids.shape)}. Tokenize one text a row, without return_tensors."
            )
    return columns


def _tensor(name: str, value: Any) -> Tensor:
    """Make a CPU tensor of int64, float32 or bool."""
    if isinstance(value, Tensor):
        kind = "f" if value.is_floating_point() else "b" if value.dtype == torch.bool else "i"
        return value.detach().to("cpu", _DTYPES[kind])
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths inside
        raise ConfigurationError(f"a row's field {name!r} has no shape: {error}.") from error
    # An empty list is of floats for numpy, and of tokens for us.
    is_empty_list = not array.size and not isinstance(value, np.ndarray)
    dtype = torch.int64 if is_empty_list else _DTYPES.get(array.dtype.kind)
    if dtype is None:
        raise ConfigurationError(
            f"a row's field {name!r} is {value!r}, which cannot be a tensor. Leave the field out "
            "of the rows."
        )
    return torch.tensor(array, dtype=dtype)


def is_target(name: str) -> bool:
    """Whether a field is of the other sequence, where a collator has ``label_buckets``."""
    return name == "labels" or name.startswith("decoder_")


def _check_is_sequence(name: str, values: list[Tensor]) -> None:
    for value in values:
        if value.ndim != 1:
            raise ConfigurationError(
                f"label_buckets pads {name!r} as a sequence of its own, but a row's is of shape "
                f"{list(value.shape)}. Leave label_buckets out where labels are of rows."
            )


def _belongs_to_tokens(name: str, values: list[Tensor], lengths: list[int]) -> bool:
    if name == "labels" and values[0].is_floating_point():
        return False
    return all(v.ndim == 1 and len(v) == n for v, n in zip(values, lengths, strict=True))


def _stacked(name: str, values: list[Tensor]) -> Tensor:
    shapes = sorted({tuple(value.shape) for value in values})
    if len(shapes) > 1:
        remedy = (
            "Give label_buckets for a model that writes another sequence than it reads"
            if is_target(name)
            else "Pad the field in the data set, or leave it out of the rows"
        )
        raise ConfigurationError(
            f"the field {name!r} is neither as long as input_ids in every row nor of one shape: "
            f"shapes {[list(shape) for shape in shapes]}. {remedy}."
        )
    dtype = values[0].dtype
    for value in values:
        dtype = torch.promote_types(dtype, value.dtype)
    return torch.stack([value.to(dtype) for value in values])


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigurationError(f"{name} must be one of {choices}, but it is {value!r}.")
