"""How the next token is chosen, and where its random numbers come from.

Shapes: B rows, V tokens of the vocabulary, N new tokens.

Everything here has fixed shapes and asks the host nothing, so that it can be part of a graph. The
random numbers are made on the host before the loop, one for each row and new token, each row with a
generator of its own. So a row's text depends on its own seed and logits only: not on its place in
the batch, on the other rows, nor on how many ranks there are.

A token is drawn by inverting the distribution's cumulated probabilities at the row's number, which
takes one number a token and no noise over the whole vocabulary.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gaudi.modules.generation.settings import GenerationSettings


def choose(logits: Tensor, settings: GenerationSettings, uniform: Tensor | None) -> Tensor:
    """The next token of each row.

    Args:
        logits: Of shape (B, V), any float dtype.
        settings: How.
        uniform: Numbers from [0, 1) of shape (B,), float32; None where nothing is sampled.

    Returns:
        Token ids of shape (B,), int64, new.
    """
    scores = logits.float()
    if uniform is None:
        return scores.argmax(-1)
    return draw(filtered(scores, settings), uniform)


def filtered(scores: Tensor, settings: GenerationSettings) -> Tensor:
    """Logits with those at minus infinity that cannot be drawn.

    The same values, in the same order, as Transformers' warpers for temperature, top-k and top-p.

    Args:
        scores: Of shape (B, V), float32.
        settings: What is filtered.

    Returns:
        Of the same shape, new.
    """
    scores = scores / settings.temperature
    num_tokens = scores.shape[-1]
    if settings.top_k is not None and settings.top_k < num_tokens:
        kth = scores.topk(settings.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    if settings.top_p is not None and settings.top_p < 1.0:
        ascending, order = scores.sort(dim=-1)
        improbable = ascending.softmax(-1).cumsum(-1) <= 1 - settings.top_p
        is_last = torch.arange(num_tokens, device=scores.device) == num_tokens - 1
        improbable = improbable & ~is_last  # the most likely token stays
        scores = scores.masked_fill(improbable.scatter(-1, order, improbable), -torch.inf)
    return scores


def draw(scores: Tensor, uniform: Tensor) -> Tensor:
    """Draw from the softmax of the scores.

    Args:
        scores: Of shape (B, V), float32; minus infinity is never drawn.
        uniform: Of shape (B,), float32, from [0, 1).

    Returns:
        Token ids of shape (B,), int64.
    """
    cumulated = scores.softmax(-1).cumsum(-1)
    total = cumulated[:, -1:]
    # The first token above the number. The second condition ends at the last one that has any
    # probability, should rounding take number times total up to the total.
    is_before = (cumulated <= uniform[:, None] * total) & (cumulated < total)
    return is_before.sum(-1)


def row_seed(seed: int, prompt: Sequence[int]) -> int:
    """The seed of a row that brings none of its own: made of the prompt's tokens and the seed.

    Args:
        seed: The module's.
        prompt: The prompt's token ids, without padding.
    """
    digest = hashlib.blake2b(
        struct.pack(f"<q{len(prompt)}q", _as_int64(seed), *prompt), digest_size=8
    )
    return _as_int64(int.from_bytes(digest.digest(), "little"))


def uniforms(seeds: Sequence[int], num_numbers: int) -> Tensor:
    """Random numbers on the CPU, each row from a generator of its own.

    Args:
        seeds: A seed for each row.
        num_numbers: How many for each row.

    Returns:
        Of shape (rows, num_numbers), float32, from [0, 1).
    """
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(_as_int64(seed))
        rows.append(torch.rand(num_numbers, generator=generator))
    return torch.stack(rows)


def _as_int64(value: int) -> int:
    """The lowest 64 bits of a whole number, as a signed one."""
    return (value + 2**63) % 2**64 - 2**63
