"""From what a dataloader gives to prompts of equal length, padded on the left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.errors import ConfigurationError

_WANTED = (
    "a batch must be a mapping with input_ids (and attention_mask), or with a tokenizer a list of "
    "strings, of {'prompt': string}, or {'prompt': list of strings}"
)
_SMALLEST_BUCKET = 16


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of a batch.

    Attributes:
        token_ids: Each prompt's token ids, without padding.
        seeds: Each row's own seed, where the batch brings them.
    """

    token_ids: list[list[int]]
    seeds: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class PromptReader:
    """Reads batches.

    Attributes:
        tokenizer: Turns text into tokens; None where batches hold tokens.
        chat: Whether a text is a user's message in a chat, as the tokenizer's template writes it.
        pad_token_id: The token of padding.
        vocab_size: How many token ids there are.
    """

    tokenizer: Any
    chat: bool
    pad_token_id: int
    vocab_size: int

    def __post_init__(self) -> None:
        if self.chat and self.tokenizer is None:
            raise ConfigurationError("chat=True needs a tokenizer. Pass tokenizer=... .")
        if self.chat and not getattr(self.tokenizer, "chat_template", None):
            raise ConfigurationError(
                f"chat=True needs a chat template, and {type(self.tokenizer).__name__} has none. "
                "Set tokenizer.chat_template, or leave chat=False for prompts that are continued "
                "as they are."
            )

    def __call__(self, batch: Any) -> Prompts:
        """Read a batch.

        Args:
            batch: Tokens: a mapping with ``input_ids`` of shape (B, T) and ``attention_mask`` of
                the same shape, padded on whichever side (or lists of token ids of any lengths).
                Texts, with a tokenizer: a list of strings or of ``{"prompt": string}``, or a
                mapping with ``"prompt"``. A mapping may have ``"seed"``, a whole number for each
                row. Tensors on a device are read by the host.

        Raises:
            ConfigurationError: It is none of these, or has an empty prompt or an unknown token.
        """
        if isinstance(batch, str):
            batch = [batch]
        if isinstance(batch, Sequence) and batch and all(isinstance(r, Mapping) for r in batch):
            names = batch[0].keys()
            if any(row.keys() != names for row in batch):
                raise ConfigurationError(
                    f"{_WANTED}, but the rows of this one have other names: {list(names)} and "
                    f"{next(list(row) for row in batch if row.keys() != names)}."
                )
            batch = {name: [row[name] for row in batch] for name in names}
        seeds = None
        if isinstance(batch, Mapping):
            token_ids = self._of_mapping(batch)
            if batch.get("seed") is not None:
                seeds = _seeds(batch["seed"], len(token_ids))
        elif isinstance(batch, Sequence) and all(isinstance(row, str) for row in batch):
            token_ids = self._tokenize(list(batch))
        else:
            raise ConfigurationError(f"{_WANTED}, but it is of type {type(batch).__name__}.")
        self._check(token_ids)
        return Prompts(token_ids=token_ids, seeds=seeds)

    def _of_mapping(self, batch: Mapping[str, Any]) -> list[list[int]]:
        if "input_ids" in batch:
            rows = _rows("input_ids", batch["input_ids"])
            if batch.get("attention_mask") is None:
                self._check_unmasked(rows)
                return rows
            masks = _rows("attention_mask", batch["attention_mask"])
            if list(map(len, rows)) != list(map(len, masks)):
                raise ConfigurationError(
                    "input_ids and attention_mask must be of the same shape, but they have "
                    f"{list(map(len, rows))} and {list(map(len, masks))} tokens."
                )
            return [
                [token for token, is_token in zip(row, mask, strict=True) if is_token]
                for row, mask in zip(rows, masks, strict=True)
            ]
        if "prompt" in batch:
            prompts = batch["prompt"]
            return self._tokenize([prompts] if isinstance(prompts, str) else list(prompts))
        raise ConfigurationError(f"{_WANTED}, but this one has {list(batch)}.")

    def _tokenize(self, texts: list[Any]) -> list[list[int]]:
        if not texts:
            return []
        if self.tokenizer is None:
            raise ConfigurationError(
                "a batch of texts needs a tokenizer, and TextGenerationModule has none. Pass "
                "tokenizer=..., or batches with input_ids and attention_mask."
            )
        if not all(isinstance(text, str) for text in texts):
            kinds = sorted({type(text).__name__ for text in texts} - {"str"})
            raise ConfigurationError(f"{_WANTED}, but among its prompts are {', '.join(kinds)}.")
        if self.chat:
            texts = [
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
                )
                for text in texts
            ]
        # A template has written all special tokens already.
        encoded = self.tokenizer(texts, add_special_tokens=not self.chat)
        return [list(ids) for ids in encoded["input_ids"]]

    def _check_unmasked(self, rows: list[list[int]]) -> None:
        for place, row in enumerate(rows):
            if len(row) > 1 and self.pad_token_id in (row[0], row[-1]):
                raise ConfigurationError(
                    f"row {place} of input_ids begins or ends with the pad token "
                    f"{self.pad_token_id}, and the batch has no attention_mask, so nobody knows "
                    "what is padding. Pass attention_mask too."
                )

    def _check(self, token_ids: list[list[int]]) -> None:
        for place, row in enumerate(token_ids):
            if not row:
                raise ConfigurationError(
                    f"the prompt of row {place} is empty: there is no token to continue from. Give "
                    "it at least one, such as the tokenizer's BOS token."
                )
            if not 0 <= min(row) <= max(row) < self.vocab_size:
                wrong = next(token for token in row if not 0 <= token < self.vocab_size)
                raise ConfigurationError(
                    f"the prompt of row {place} has the token {wrong}, but the model knows 0 to "
                    f"{self.vocab_size - 1}. Is the tokenizer the model's own?"
                )


def bucket_for(longest: int, buckets: Sequence[int] | None, limit: int | None = None) -> int:
    """The length to pad to.

    Args:
        longest: The longest prompt's length.
        buckets: Ascending; None for powers of two, 16 and up.
        limit: The most tokens that a prompt may have. No power of two goes beyond it, unless the
            prompt does.

    Raises:
        ConfigurationError: It is longer than any bucket.
    """
    if buckets is None:
        power = max(_SMALLEST_BUCKET, 1 << (longest - 1).bit_length())
        return power if limit is None else max(longest, min(power, limit))
    found = next((bucket for bucket in buckets if longest <= bucket), None)
    if found is None:
        raise ConfigurationError(
            f"a prompt of {longest} tokens is longer than the largest bucket, {buckets[-1]}. "
            f"Shorten it, or pass buckets up to {longest} or more."
        )
    return found


def check_buckets(buckets: Sequence[int] | None) -> list[int] | None:
    """The buckets in ascending order, each once.

    Raises:
        ConfigurationError: There are none, or one is no length.
    """
    if buckets is None:
        return None
    found = list(buckets) if isinstance(buckets, Iterable) else []
    if not found or any(not isinstance(b, int) or isinstance(b, bool) or b < 1 for b in found):
        raise ConfigurationError(
            "buckets must be one or more lengths of prompts in tokens, such as [32, 64], but it is "
            f"{buckets!r}. None pads to powers of two."
        )
    return sorted(set(found))


def align_left_padded(
    token_ids: Sequence[Sequence[int]], bucket: int, pad_token_id: int
) -> tuple[Tensor, Tensor]:
    """Prompts that all end in the last column.

    Args:
        token_ids: Each prompt's token ids, at most `bucket` of them.
        bucket: The length to pad to.
        pad_token_id: What to pad with.

    Returns:
        Token ids and the mask, 1 for tokens and 0 for padding, of shape (B, bucket), int64, CPU.
    """
    input_ids = torch.full((len(token_ids), bucket), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(token_ids):
        input_ids[row, bucket - len(ids) :] = torch.tensor(ids, dtype=torch.int64)
        attention_mask[row, bucket - len(ids) :] = 1
    return input_ids, attention_mask


def _as_list(value: Any) -> Any:
    """Tensors and arrays as lists; else what it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _rows(name: str, value: Any) -> list[list[int]]:
    """Whole numbers of shape (B, T), or lists of any lengths."""
    value = _as_list(value)
    rows = [_as_list(row) for row in value] if isinstance(value, Sequence) else [value]
    if not all(isinstance(row, Sequence) and not isinstance(row, str) for row in rows):
        raise ConfigurationError(
            f"{name} must be of shape (rows, tokens), or a list of lists of token ids, but it has "
            "fewer dimensions. For one prompt pass one row."
        )
    numbers = [[_whole(number) for number in row] for row in rows]
    if any(number is None for row in numbers for number in row):
        raise ConfigurationError(
            f"{name} must be of shape (rows, tokens) and hold whole numbers, but it holds "
            f"{next(n for row in rows for n in row if _whole(n) is None)!r}."
        )
    return numbers  # type: ignore[return-value]


def _seeds(value: Any, num_rows: int) -> list[int]:
    """A batch's seeds, one for each row."""
    value = _as_list(value)
    given = list(value) if isinstance(value, Sequence) else [value]
    seeds = [seed for seed in map(_whole, given) if seed is not None]
    if len(given) != num_rows or len(seeds) != num_rows:
        raise ConfigurationError(
            f"seed must have one whole number for each of the {num_rows} rows, but it has "
            f"{len(given)}: {given}."
        )
    return seeds


def _whole(value: Any) -> int | None:
    """The whole number that a value is, None where it is another."""
    value = _as_list(value)
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if is_whole else None
