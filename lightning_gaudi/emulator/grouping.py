"""Tensors in groups by device: C++, which sorts them, takes emulated ones for the CPU's.

Gradient clipping and the optimizers' variants for many tensors move numbers to a group's device:
one called the CPU would cost a copy to the host in each step that a card does not make.
"""

from __future__ import annotations

from typing import Any

import torch

from lightning_gaudi.emulator.patching import replace
from lightning_gaudi.emulator.tensor import HPUTensor

_NAME = "_group_tensors_by_device_and_dtype"
_Key = tuple[torch.device, torch.dtype]
_Group = tuple[list[list[Any]], list[int]]


def _is_ours(tensor: Any) -> bool:
    """Whether a tensor is on the HPU: an `HPUTensor`, or a DTensor of them."""
    return isinstance(tensor, HPUTensor) or getattr(tensor, "is_hpu", False)


def attach() -> None:
    """Let emulated tensors be groups of their own."""
    plain = getattr(torch._C, _NAME)
    hpu = torch.device("hpu", 0)

    def group(lists: list[list[Any]], with_indices: bool = False) -> dict[_Key, _Group]:
        groups: dict[_Key, _Group] = plain(lists, with_indices)
        if not any(_is_ours(tensor) for tensor in lists[0]):
            return groups
        parted: dict[_Key, _Group] = {}
        for (device, dtype), (columns, indices) in groups.items():
            are_ours = [_is_ours(tensor) for tensor in columns[0]]
            for is_ours in sorted(set(are_ours)):
                rows = [row for row, ours in enumerate(are_ours) if ours == is_ours]
                key = (hpu if is_ours else device, dtype)
                parted[key] = (
                    # A list that is not given has no rows.
                    [[column[row] for row in rows] if column else [] for column in columns],
                    [indices[row] for row in rows] if indices else [],
                )
        return parted

    replace(torch._C, _NAME, group)
