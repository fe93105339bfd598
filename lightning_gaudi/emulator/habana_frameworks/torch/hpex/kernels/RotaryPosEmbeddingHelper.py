"""Rotary position embeddings (docs.habana.ai, "hpex/kernels/RotaryPosEmbeddingHelper")."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator.missing import name_missing


class RotaryPosEmbeddingMode(Enum):
    """Which elements rotate together: those half the size apart, or neighbours."""

    BLOCKWISE = 0
    PAIRWISE = 1


def apply_rotary_pos_emb(p: Tensor, *args: Any) -> Tensor:
    """Rotate: ``p * cos + rotated(p) * sin``.

    Args:
        p: The input.
        args: Either ``cos, sin, position_ids=None, offset=0, mode=BLOCKWISE`` or one
            ``rope_cache``, as ChatGLM has it. `cos` and `sin` broadcast to `p` and get no
            gradient; with `position_ids`, (batch, length), they are tables of (positions, size)
            and rows of them are taken, for an input of (batch, heads, length, size).

    Returns:
        The shape of `p`; float32 where one of the three is, else the dtype of `p`.

    Raises:
        NotImplementedError: An offset: public sources contradict themselves on its meaning.
    """
    if len(args) == 1:
        return _rotate_by_cache(p, args[0].detach())
    cos, sin, *rest = args
    position_ids: Tensor | None = rest[0] if rest else None
    offset: int = rest[1] if len(rest) > 1 else 0
    mode = rest[2] if len(rest) > 2 else RotaryPosEmbeddingMode.BLOCKWISE
    if offset:
        raise NotImplementedError(
            "the emulated HPU's rotary embeddings take no offset: slice cos and sin instead."
        )
    is_blockwise = mode is RotaryPosEmbeddingMode.BLOCKWISE
    if position_ids is not None and is_blockwise:
        cos, sin = (t.squeeze(1).squeeze(0)[position_ids].unsqueeze(1) for t in (cos, sin))
    has_float32 = any(tensor.dtype is torch.float32 for tensor in (p, cos, sin))
    dtype = torch.float32 if has_float32 else p.dtype
    p, cos, sin = p.to(dtype), cos.detach().to(dtype), sin.detach().to(dtype)
    rotated = _rotate_half(p) if is_blockwise else _rotate_every_two(p)
    result: Tensor = p * cos + rotated * sin
    return result


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _rotate_every_two(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def _rotate_by_cache(p: Tensor, rope_cache: Tensor) -> Tensor:
    """ChatGLM's: (length, batch, heads, size), of which the first part rotates in pairs."""
    length, heads = p.shape[0], p.shape[2]
    num_rotating = rope_cache.shape[-2] * 2
    rotating, rest = p[..., :num_rotating], p[..., num_rotating:]
    rotating = rotating.reshape(length, -1, heads, num_rotating)
    cache = rope_cache[:length].reshape(length, -1, 1, num_rotating // 2, 2)
    cos, sin = (cache[..., i].repeat_interleave(2, dim=-1).to(p.dtype) for i in (0, 1))
    rotated = rotating * cos + _rotate_every_two(rotating) * sin
    return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated


class RotaryPosEmbeddingHelperV1(torch.autograd.Function):
    """`apply_rotary_pos_emb` with an offset (GPT-NeoX and LLaMA)."""

    @staticmethod
    def apply(p: Tensor, cos: Tensor, sin: Tensor, offset: int) -> Tensor:
        """Rotate halves."""
        return apply_rotary_pos_emb(p, cos, sin, None, offset)


class RotaryPosEmbeddingHelperV2(torch.autograd.Function):
    """`apply_rotary_pos_emb` with positions (StableLM)."""

    @staticmethod
    def apply(p: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor | None) -> Tensor:
        """Rotate halves."""
        return apply_rotary_pos_emb(p, cos, sin, position_ids)


class RotaryPosEmbeddingHelperV3(torch.autograd.Function):
    """`apply_rotary_pos_emb` with a cache (ChatGLM)."""

    @staticmethod
    def apply(p: Tensor, rope_cache: Tensor) -> Tensor:
        """Rotate pairs."""
        return apply_rotary_pos_emb(p, rope_cache)


__all__ = [
    "RotaryPosEmbeddingHelperV1",
    "RotaryPosEmbeddingHelperV2",
    "RotaryPosEmbeddingHelperV3",
    "RotaryPosEmbeddingMode",
    "apply_rotary_pos_emb",
]
__getattr__ = name_missing("habana_frameworks.torch.hpex.kernels.RotaryPosEmbeddingHelper")
