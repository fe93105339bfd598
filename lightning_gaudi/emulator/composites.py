"""Composites of PyTorch that begin with a tensor of their own, written out for the device.

In C++ these make a tensor "on the same device" and fill it. To C++ that device is the CPU, so the
tensor has not our type, and the result would come out on the host. Here they are spelled with ops
on the device, the same ones that a card runs. Values, strides, gradients and errors stay
PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_gaudi.emulator.patching import replace
from lightning_gaudi.emulator.tensor import HPUTensor


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


def _one_hot(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
        # Without a number of classes PyTorch reads it from the device, and with a wrong one raises.
        if type(tensor) is not HPUTensor or tensor.dtype is not torch.int64 or num_classes < 1:
            return plain(tensor, num_classes)
        classes = torch.arange(num_classes, device=tensor.device)
        return (tensor.unsqueeze(-1) == classes).to(torch.int64)

    return one_hot


def attach() -> None:
    """Put these in place of PyTorch's functions; they serve plain tensors as before."""
    replace(torch, "vander", _vander(torch.vander))
    replace(torch.nn.functional, "one_hot", _one_hot(torch.nn.functional.one_hot))
    nn: Any = torch._C._nn
    replace(nn, "pad_sequence", _pad_sequence(nn.pad_sequence))
    functions: Any = torch._VF
    replace(functions, "_pad_packed_sequence", _pad_packed_sequence(functions._pad_packed_sequence))
