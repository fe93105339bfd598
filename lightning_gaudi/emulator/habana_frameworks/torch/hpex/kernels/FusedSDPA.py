"""Scaled dot product attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lightning_gaudi.emulator.missing import name_missing
from lightning_gaudi.emulator.switches import recompute_sdp_enabled

_SOFTMAX_MODES = ("none", "fast", "fp32")
_PADDING_TYPES = ("left", "right")


class FusedSDPA(torch.autograd.Function):
    """Attention as PyTorch computes it, with the SDK's further arguments.

    What they mean is from docs.habana.ai ("hpex/kernels/FusedSDPA") and bridge 1.19.0,
    ``hpex/kernels/FusedSDPA.py``.
    """

    @staticmethod
    def apply(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        softmax_mode: str = "None",
        recompute_mode: bool | None = None,
        valid_seq_len: Tensor | None = None,
        seq_padding_type: str = "left",
        return_dropout_mask: bool = False,
    ) -> Tensor:
        """Attend. Positional arguments only, as for any autograd function.

        Args:
            q: Queries, (..., heads, L, E), or (batch, L, E).
            k: Keys, (..., groups, S, E); `heads` may be a multiple of `groups`.
            v: Values, (..., groups, S, Ev).
            attn_mask: What is added to the scores, or a bool tensor that is true where a query
                sees a key; it broadcasts to (..., heads, L, S) and gets no gradient.
            dropout_p: Which part of the probabilities becomes 0.
            is_causal: Whether query i sees the keys up to i only.
            scale: What the scores are multiplied by; one over the root of E by default.
            softmax_mode: "None"; "fast", which is exact here; "fp32", in float32.
            recompute_mode: Whether a card's backward recomputes; None asks ``sdp_kernel``.
            valid_seq_len: How many keys of each sequence are no padding, (batch,).
            seq_padding_type: On which side the padding is.
            return_dropout_mask: Not emulated.

        Returns:
            (..., heads, L, Ev) in the dtype of `q`. A query that sees no key gives 0.

        Raises:
            AssertionError: A combination that the SDK does not support.
            NotImplementedError: The dropout mask was asked for.
            ValueError: An unknown mode of softmax or side of padding.
        """
        mode, padding = softmax_mode.lower(), seq_padding_type.lower()
        if mode not in _SOFTMAX_MODES or padding not in _PADDING_TYPES:
            raise ValueError(
                f"FusedSDPA: softmax_mode is None, fast or fp32 and seq_padding_type left or "
                f"right, but they are {softmax_mode!r} and {seq_padding_type!r}."
            )
        recompute = recompute_sdp_enabled() if recompute_mode is None else recompute_mode
        trains = q.requires_grad or k.requires_grad or v.requires_grad
        _check(mode, recompute, trains, is_causal, attn_mask, valid_seq_len, return_dropout_mask)
        mask = None if attn_mask is None else attn_mask.detach()
        if is_causal and (mask is not None or valid_seq_len is not None):
            mask = _restrict(mask, _causal(q, k))
            is_causal = False
        if valid_seq_len is not None:
            mask = _restrict(mask, _no_padding(valid_seq_len, k.shape[-2], padding, q.dim()))
        dtype = q.dtype
        if mode == "fp32":
            q, k, v = (tensor.to(torch.float32) for tensor in (q, k, v))
            mask = mask if mask is None or mask.dtype == torch.bool else mask.to(torch.float32)
        has_groups = q.dim() == 4 and q.shape[1] != k.shape[1]
        return functional.scaled_dot_product_attention(
            q, k, v, mask, dropout_p, is_causal, scale=scale, enable_gqa=has_groups
        ).to(dtype)


def _check(
    mode: str,
    recompute: bool,
    trains: bool,
    is_causal: bool,
    attn_mask: Tensor | None,
    valid_seq_len: Tensor | None,
    return_dropout_mask: bool,
) -> None:
    if recompute and trains and mode == "fast" and not is_causal:
        raise AssertionError(
            "Optimized softmax mode is supported in recompute training mode only in "
            "causal(triangular) mask case"
        )
    if valid_seq_len is not None and (not is_causal or trains or attn_mask is not None):
        raise AssertionError(
            "Valid sequence length is supported only in inference with is_causal(triangular) mask "
            "case"
        )
    if is_causal and attn_mask is not None and trains:
        raise AssertionError("a mask beside is_causal is supported only in inference")
    if return_dropout_mask:
        raise NotImplementedError(
            "the emulated HPU's FusedSDPA gives no dropout mask: leave return_dropout_mask out."
        )


def _causal(q: Tensor, k: Tensor) -> Tensor:
    return torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()


def _no_padding(valid_seq_len: Tensor, num_keys: int, padding: str, num_dims: int) -> Tensor:
    """True where a key is no padding, (batch, 1, ..., S)."""
    positions = torch.arange(num_keys, device=valid_seq_len.device)
    lengths = valid_seq_len.reshape(-1, *[1] * (num_dims - 1))
    return positions < lengths if padding == "right" else positions >= num_keys - lengths


def _restrict(mask: Tensor | None, seen: Tensor) -> Tensor:
    """A mask that is further restricted to what `seen` marks."""
    if mask is None:
        return seen
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)


__all__ = ["FusedSDPA"]
__getattr__ = name_missing("habana_frameworks.torch.hpex.kernels.FusedSDPA")
