"""Says what a tokenizer cuts off a prompt. Stock pipelines leave that to a log message."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

# Tokenizers without a limit of their own have this or more.
_NO_LIMIT = 1_000_000


class CutPrompts:
    """Warns of prompts that a pipeline's tokenizers cut, once each.

    Args:
        pipeline: A pipeline of Diffusers.
        max_sequence_length: Tokens that a tokenizer other than CLIP's may give; None without a
            limit of the pipeline's own.
    """

    def __init__(self, pipeline: Any, max_sequence_length: int | None) -> None:
        self._tokenizers: dict[int, tuple[str, Any, int]] = {}
        for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
            tokenizer = getattr(pipeline, name, None)
            limit = int(getattr(tokenizer, "model_max_length", _NO_LIMIT))
            if max_sequence_length is not None and "CLIP" not in type(tokenizer).__name__:
                limit = min(limit, max_sequence_length)
            if callable(tokenizer) and limit < _NO_LIMIT:
                self._tokenizers.setdefault(id(tokenizer), (name, tokenizer, limit))
        self._seen: set[str] = set()

    def look_at(self, prompts: Iterable[str]) -> None:
        """Warn of those that are too long and were not looked at before."""
        for prompt in prompts:
            if prompt in self._seen:
                continue
            self._seen.add(prompt)
            for name, tokenizer, limit in self._tokenizers.values():
                cut = _cut_from(tokenizer, prompt, limit)
                if cut:
                    warnings.warn(
                        f"a prompt is longer than the {limit} tokens that the pipeline takes of "
                        f"its {name}. This part of it is cut off: {cut!r}.",
                        stacklevel=5,
                    )


def _cut_from(tokenizer: Any, prompt: str, limit: int) -> str:
    """The part of a prompt that is cut off; empty where it fits."""
    ids = list(tokenizer(prompt, truncation=False, verbose=False).input_ids)
    if len(ids) <= limit:
        return ""
    num_after = 0  # tokens such as the end of the sequence, which are kept
    special = set(getattr(tokenizer, "all_special_ids", ()))
    while ids[len(ids) - 1 - num_after] in special and num_after < len(ids) - 1:
        num_after += 1
    end = len(ids) - num_after
    return str(tokenizer.decode(ids[limit - num_after : end])).strip()
