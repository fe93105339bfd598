"""From a file of texts to tokenized rows with labels, for `TextDataModule`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset

from lightning_gaudi.data.collate import TooLong
from lightning_gaudi.data.dataset import Ragged, Row, TokenizedRows
from lightning_gaudi.data.labels import are_numbers, collect_label_names, read_labels
from lightning_gaudi.data.masking import MaskedRows
from lightning_gaudi.data.reading import Table, read_table
from lightning_gaudi.data.tokenizing import Fields, Tokenizing, joined
from lightning_gaudi.errors import ConfigurationError

Objective = Literal["causal-lm", "masked-lm"]


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """Which columns of a file are what, and what the model learns; as `TextDataModule` has them."""

    text_column: str
    text_pair_column: str | None
    label_column: str | None
    target_column: str | None
    objective: Objective | None
    too_long: TooLong
    mask_fraction: float
    seed: int

    @property
    def has_label_column(self) -> bool:
        """Whether labels come from a column of labels."""
        return (
            self.label_column is not None and self.target_column is None and self.objective is None
        )


@dataclass(frozen=True)
class TextRows:
    """The rows of a file.

    Attributes:
        rows: The data set.
        lengths: Tokens in each row, int64.
        target_lengths: Tokens in each row's target, for models that write another sequence.
        num_cut: How many texts were cut.
        num_targets_cut: How many targets were cut.
    """

    rows: Dataset[Row]
    lengths: Any
    target_lengths: Any | None
    num_cut: int
    num_targets_cut: int = 0


def labels_of(path: str | Path, settings: TextSettings) -> tuple[list[str] | None, bool]:
    """Tell what a training file's labels are.

    Returns:
        Their names, sorted, or None; and whether they are numbers to predict.
    """
    assert settings.label_column is not None
    table = read_table(path, text_column=settings.text_column)
    names = collect_label_names(table, settings.label_column)
    return names, names is None and are_numbers(table, settings.label_column)


def read_rows(
    path: str | Path,
    settings: TextSettings,
    tokenizer: Any,
    *,
    limit: int | None,
    target_limit: int | None,
    label_names: Sequence[str] | None,
    has_numbers: bool = False,
    is_training: bool = False,
    has_labels: bool = True,
) -> TextRows:
    """Read and tokenize a file.

    Args:
        path: The file.
        settings: What its columns are.
        tokenizer: A Transformers tokenizer with a pad token.
        limit: The most tokens in a row; None for no limit.
        target_limit: The most tokens in a target.
        label_names: The classes' names; None where labels are numbers.
        has_numbers: Whether labels are numbers to predict, also where all are whole.
        is_training: Whether ``"masked-lm"`` hides other tokens each time.
        has_labels: Whether to read labels; not for prediction.

    Raises:
        ConfigurationError: The file, a column, a label or a text is not what it must be.
    """
    table = read_table(path, text_column=settings.text_column)
    is_masked = has_labels and settings.objective == "masked-lm"
    is_joined = has_labels and settings.objective == "causal-lm" and bool(settings.target_column)
    tokenize = Tokenizing(
        tokenizer,
        limit=None if is_joined else limit,
        too_long=settings.too_long,
        special_tokens_mask=is_masked,
    )
    fields = tokenize(table, settings.text_column, settings.text_pair_column)
    labels = target_lengths = None
    num_cut = num_targets_cut = 0
    if is_joined:
        num_cut = _join(table, settings, tokenizer, fields, limit)
    elif has_labels and settings.objective == "causal-lm":
        fields["labels"] = fields["input_ids"]
    elif has_labels and settings.target_column is not None and not is_masked:
        target = Tokenizing(tokenizer, limit=target_limit, too_long=settings.too_long)
        fields["labels"] = target.targets(table, settings.target_column)
        target_lengths = [len(row) for row in fields["labels"]]
        num_targets_cut = target.num_cut
    elif has_labels and settings.has_label_column:
        assert settings.label_column is not None
        labels = read_labels(table, settings.label_column, label_names, as_numbers=has_numbers)
    packed = TokenizedRows(_packed(fields), labels)
    rows: Dataset[Row] = packed
    if is_masked:
        rows = _masked(packed, settings, tokenizer, is_training)
    num_cut += tokenize.num_cut
    return TextRows(rows, packed.lengths, target_lengths, num_cut, num_targets_cut)


def _packed(fields: Fields) -> dict[str, Ragged]:
    """Pack each list of rows once, also where two fields are the same list."""
    packed = {id(rows): Ragged(rows) for rows in fields.values()}
    return {name: packed[id(rows)] for name, rows in fields.items()}


def _join(
    table: Table,
    settings: TextSettings,
    tokenizer: Any,
    fields: Fields,
    limit: int | None,
) -> int:
    """Put targets after the prompts in ``fields``, and return how many rows were cut."""
    assert settings.target_column is not None
    continuing = Tokenizing(
        tokenizer, limit=None, too_long=settings.too_long, add_special_tokens=False
    )
    targets = continuing.targets(table, settings.target_column)
    prompts = fields["input_ids"]
    ids, labels = joined(prompts, targets, tokenizer.eos_token_id)
    too_long = [i for i, row in enumerate(ids) if limit is not None and len(row) > limit]
    if too_long and settings.too_long == "raise":
        row = too_long[0]
        raise ConfigurationError(
            f"the text and target in {table.place(row)} have {len(ids[row])} tokens together, more "
            f"than {limit}. Raise max_length or the largest bucket, or cut texts with "
            "too_long='truncate'."
        )
    fields.clear()  # what else there was belongs to prompts alone
    fields.update(input_ids=[row[:limit] for row in ids], labels=[row[:limit] for row in labels])
    return len(too_long)


def _masked(
    rows: TokenizedRows, settings: TextSettings, tokenizer: Any, is_training: bool
) -> MaskedRows:
    if tokenizer.mask_token_id is None:
        raise ConfigurationError(
            f"objective='masked-lm' hides tokens, and {type(tokenizer).__name__} has no mask "
            "token. Use a tokenizer such as BERT's, or objective='causal-lm'."
        )
    return MaskedRows(
        rows,
        mask_token_id=tokenizer.mask_token_id,
        num_tokens=len(tokenizer),
        fraction=settings.mask_fraction,
        seed=None if is_training else settings.seed,
    )
