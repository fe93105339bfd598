"""Tokenizes the rows of a table, once, and cuts or refuses those that are too long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_gaudi.data.collate import TooLong
from lightning_gaudi.data.labels import IGNORED
from lightning_gaudi.data.reading import Table
from lightning_gaudi.errors import ConfigurationError

_CHUNK = 4096
# A tokenizer without a limit says a number of about 1e30.
_NO_LIMIT = 10**9

GGUF_SUFFIX = ".gguf"
Numbers = npt.NDArray[np.int32]  # of a row; a list of ints takes ten times the memory
Fields = dict[str, list[Numbers]]


def find_tokenizer(tokenizer: Any) -> Any:
    """Return a Transformers tokenizer: loaded where it is a path, a name or a ``.gguf`` file.

    Raises:
        ConfigurationError: There is none at the path.
    """
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    from transformers import AutoTokenizer

    auto: Any = AutoTokenizer
    path = Path(tokenizer)
    try:
        if path.suffix == GGUF_SUFFIX:
            return auto.from_pretrained(path.parent, gguf_file=path.name)
        return auto.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"there is no tokenizer at {str(tokenizer)!r}: {error}. Give the folder of a "
            "Transformers tokenizer, a .gguf file, a model's name, or a loaded tokenizer."
        ) from error


def load_tokenizer(tokenizer: Any) -> Any:
    """Return what `find_tokenizer` does, for rows that are padded.

    Raises:
        ConfigurationError: It has no pad token, or there is none at the path.
    """
    tokenizer = find_tokenizer(tokenizer)
    if tokenizer.pad_token_id is None:
        raise ConfigurationError(
            f"{type(tokenizer).__name__} has no pad token, and rows are padded to buckets. Set one "
            "on a loaded tokenizer, for example tokenizer.pad_token = tokenizer.eos_token, and "
            "save it with tokenizer.save_pretrained where a path is needed."
        )
    return tokenizer


def limit_of(tokenizer: Any, max_length: int | None) -> int | None:
    """Return the most tokens a row may have: ``max_length``, else the tokenizer's own limit."""
    if max_length is not None:
        return max_length
    limit = int(tokenizer.model_max_length)
    return limit if limit < _NO_LIMIT else None


class Tokenizing:
    """How texts become tokens.

    Args:
        tokenizer: A Transformers tokenizer with a pad token.
        limit: The most tokens of a text, special ones included; None for no limit.
        too_long: Whether a longer text is cut by the tokenizer (``"truncate"``) or an error.
        special_tokens_mask: Whether to note which tokens are special.
        add_special_tokens: Whether to add those of a whole text.

    Attributes:
        num_cut: How many texts were cut so far.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        limit: int | None,
        too_long: TooLong,
        special_tokens_mask: bool = False,
        add_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self._too_long = too_long
        self._options = {
            "return_attention_mask": False,  # all ones; the collator adds it
            "return_special_tokens_mask": special_tokens_mask,
            "add_special_tokens": add_special_tokens,
            "verbose": False,
        }
        self.num_cut = 0

    def __call__(self, table: Table, column: str, pair_column: str | None = None) -> Fields:
        """Tokenize a column, or pairs of two.

        A text without any token, and without special ones, gets one: the tokenizer's beginning of a
        sequence, its end or its padding, whichever it has first.

        Returns:
            Each row's numbers by name: ``input_ids`` and what the tokenizer adds to it, int32.

        Raises:
            ConfigurationError: A value is no string, or a text is too long and may not be cut.
        """
        texts = _texts(table, column)
        pairs = None if pair_column is None else _texts(table, pair_column)
        return self._tokenized(table, texts, pairs, self._options)

    def targets(self, table: Table, column: str) -> list[Numbers]:
        """Tokenize what a model is to write; a text without any token stays so.

        Raises:
            ConfigurationError: As a call.
        """
        texts = _texts(table, column)
        return self._tokenized(table, texts, None, self._options, as_target=True)["input_ids"]

    def _tokenized(
        self,
        table: Table,
        texts: list[str],
        pairs: list[str] | None,
        options: dict[str, Any],
        *,
        as_target: bool = False,
    ) -> Fields:
        fields: Fields = {}
        for part in _parts(len(texts)):
            first = texts[part.start : part.stop]
            second = pairs and pairs[part.start : part.stop]
            for name, rows in self._call(first, second, options, as_target).items():
                fields.setdefault(name, []).extend(rows)
        if not texts:
            return {"input_ids": []}
        for row, ids in enumerate(fields["input_ids"]):
            if self._limit is not None and len(ids) > self._limit:
                self._cut(table, row, fields, texts, pairs, as_target)
            if not len(ids) and not as_target:
                self._give_a_token(fields, row)
        return fields

    def _call(
        self, texts: list[str], pairs: list[str] | None, options: dict[str, Any], as_target: bool
    ) -> Fields:
        if as_target:
            found = self._tokenizer(text_target=texts, **options)
        else:
            found = self._tokenizer(texts, pairs, **options)
        return {
            str(name): [np.asarray(row, dtype=np.int32) for row in rows]
            for name, rows in found.items()
        }

    def _cut(
        self,
        table: Table,
        row: int,
        fields: Fields,
        texts: list[str],
        pairs: list[str] | None,
        as_target: bool,
    ) -> None:
        if self._too_long == "raise":
            raise ConfigurationError(
                f"the text in {table.place(row)} has {len(fields['input_ids'][row])} tokens, more "
                f"than {self._limit}: {texts[row][:40]!r}. Raise max_length or the largest bucket, "
                "or cut texts with too_long='truncate'."
            )
        self.num_cut += 1
        options = {**self._options, "truncation": True, "max_length": self._limit}
        again = self._call([texts[row]], pairs and [pairs[row]], options, as_target)
        for name, (values,) in again.items():
            fields[name][row] = values

    def _give_a_token(self, fields: Fields, row: int) -> None:
        # Attention over no token at all has no result.
        known = (
            self._tokenizer.bos_token_id,
            self._tokenizer.eos_token_id,
            self._tokenizer.pad_token_id,
        )
        token = next(each for each in known if each is not None)
        for name, rows in fields.items():
            value = {"input_ids": token, "special_tokens_mask": 1}.get(name, 0)
            rows[row] = np.asarray([value], dtype=np.int32)


def _texts(table: Table, column: str) -> list[str]:
    texts = table.column(column)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ConfigurationError(
                f"the column {column!r} in {table.place(row)} is {text!r}, which is no text. Give "
                "a string in every row."
            )
    return texts


def _parts(number: int) -> Iterator[range]:
    yield from (range(i, min(i + _CHUNK, number)) for i in range(0, number, _CHUNK))


def joined(
    prompts: Sequence[Numbers], targets: Sequence[Numbers], end: int | None
) -> tuple[list[Numbers], list[Numbers]]:
    """Put each target after its prompt; labels are the targets, and -100 for the prompts.

    Args:
        prompts: Token ids.
        targets: Token ids.
        end: A token to put at each end, None for none.

    Returns:
        Ids and labels.
    """
    tail = np.asarray([] if end is None else [end], dtype=np.int32)
    ids = [np.concatenate([a, b, tail]) for a, b in zip(prompts, targets, strict=True)]
    labels = [row.copy() for row in ids]
    for prompt, row in zip(prompts, labels, strict=True):
        row[: len(prompt)] = IGNORED
    return ids, labels
