"""Composites of PyTorch that begin with a tensor of their own, written out for the device.

In C++ these make a tensor "on the same device" and fill it. To C++ that device is the CPU, so the
tensor has not our type: the result would come out on the host, its random numbers would be the
host's, and a capture would take it for a constant. Here they are spelled with ops on the device,
the same ones that a card runs. Values, strides, gradients and errors stay PyTorch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator.patching import replace
from lightning_gaudi.emulator.tensor import HPUTensor

# What a unit that alpha dropout turns off becomes, below its mean (Klambauer et al., 2017).
_ALPHA = 1.7580993408473766


def _vander(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def vander(x: Tensor, N: int | None = None, increasing: bool = False) -> Tensor:
        num_columns = x.numel() if N is None else N
        if type(x) is not HPUTensor or x.dim() != 1 or num_columns < 1:
            return plain(x, N, increasing)
        dtype = x.dtype if x.is_floating_point() or x.is_complex() else torch.int64
        powers = x.new_ones((x.numel(), num_columns), dtype=dtype)
        if num_columns > 1:
            powers[:, 1:].copy_(x.unsqueeze(1))
            powers[:, 1:].copy_(torch.cumprod(powers[:, 1:], 1))
        return powers if increasing else powers.flip(1)

    return vander


def _pad_sequence(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def pad_sequence(
        sequences: Any,
        batch_first: bool = False,
        padding_value: float = 0.0,
        padding_side: str = "right",
    ) -> Tensor:
        on_device = sequences and type(sequences[0]) is HPUTensor
        if not on_device or padding_side not in ("left", "right"):
            return plain(sequences, batch_first, padding_value, padding_side)
        first = sequences[0]
        length = max(sequence.size(0) for sequence in sequences)
        rows = (len(sequences), length) if batch_first else (length, len(sequences))
        out: Tensor = first.new_full((*rows, *first.shape[1:]), padding_value)
        for number, sequence in enumerate(sequences):
            start = length - sequence.size(0) if padding_side == "left" else 0
            row = out.select(0 if batch_first else 1, number)
            row.narrow(0, start, sequence.size(0)).copy_(sequence)
        return out

    return pad_sequence


def _pad_packed_sequence(
    plain: Callable[..., tuple[Tensor, Tensor]],
) -> Callable[..., tuple[Tensor, Tensor]]:
    def pad_packed_sequence(
        data: Tensor,
        batch_sizes: Tensor,
        batch_first: bool,
        padding_value: float,
        total_length: int,
    ) -> tuple[Tensor, Tensor]:
        if type(data) is not HPUTensor:
            return plain(data, batch_sizes, batch_first, padding_value, total_length)
        # On the numbers of the rows, for the shape, the lengths and every check.
        rows, lengths = plain(torch.arange(data.size(0)), batch_sizes, False, -1, total_length)
        out: Tensor = data.new_full((*rows.shape, *data.shape[1:]), padding_value)
        start = 0
        sizes = batch_sizes.tolist()
        for time, size in enumerate(sizes):
            out[time, :size].copy_(data[start : start + size])
            start += size
        return (out.transpose(0, 1) if batch_first else out), lengths

    return pad_packed_sequence


def _feature_dropout(
    plain: Callable[..., Tensor], is_alpha: bool, is_in_place: bool
) -> Callable[..., Tensor]:
    def feature_dropout(input: Tensor, p: float, train: bool) -> Tensor:
        draws = train and 0 < p < 1 and input.dim() > 1 and input.numel() > 0
        if type(input) is not HPUTensor or not draws:
            return plain(input, p, train)
        noise: Tensor = input.new_empty(input.shape[:2] + (1,) * (input.dim() - 2))
        noise.bernoulli_(1 - p)
        if not is_alpha:
            noise.div_(1 - p)
            return input.mul_(noise) if is_in_place else input * noise
        scale = 1 / math.sqrt((_ALPHA**2 * p + 1) * (1 - p))
        shift = noise.add(-1).mul_(_ALPHA * scale).add_(_ALPHA * scale * p)
        noise.mul_(scale)
        return input.mul_(noise).add_(shift) if is_in_place else (input * noise).add_(shift)

    return feature_dropout


def attach() -> None:
    """Put these in place of PyTorch's functions; they serve plain tensors as before."""
    replace(torch, "vander", _vander(torch.vander))
    nn: Any = torch._C._nn
    replace(nn, "pad_sequence", _pad_sequence(nn.pad_sequence))
    functions: Any = torch._VF
    replace(functions, "_pad_packed_sequence", _pad_packed_sequence(functions._pad_packed_sequence))
    for name in ("feature_dropout", "feature_alpha_dropout"):
        for suffix in ("", "_"):
            function = _feature_dropout(
                getattr(torch, name + suffix), "alpha" in name, is_in_place=bool(suffix)
            )
            replace(functions, name + suffix, function)
            replace(torch, name + suffix, function)
