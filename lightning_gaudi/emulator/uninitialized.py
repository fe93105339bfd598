"""Parameters and buffers of lazy modules, which may move before they have a shape.

They have a class of their own until their first forward, and no data. So a move is only noted,
and carried out when the shape is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from lightning_gaudi.emulator.swapping import exchange
from lightning_gaudi.emulator.transfer import check_index, parse

_lazy: Any = UninitializedTensorMixin
_plain_materialize = _lazy.materialize
_plain_swap: Callable[[Tensor, Tensor], None]


def note_move(tensor: Any, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """Remember where a tensor without data is to be."""
    if device is not None:
        tensor._is_for_hpu = device.type == "hpu"
    if dtype is not None and dtype != tensor.data.dtype:
        tensor.data = torch.empty(0, dtype=dtype)


def to(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A move: `Module.to` puts what comes of a parameter in its place, and keeps of a buffer."""
    if isinstance(self, nn.Parameter):
        return self.data.to(*args, **kwargs)
    device, options = parse(args, kwargs)
    if device is not None and device.type == "hpu":
        check_index(device)
    note_move(self, device, options.get("dtype"))
    return self


def swap_tensors(t1: Tensor, t2: Tensor) -> None:
    """What `Module.to` ends in: one without data is not swapped, for its class must stay."""
    if isinstance(t1, UninitializedTensorMixin):
        note_move(t1, t2.device, t2.dtype)
    else:
        _plain_swap(t1, t2)


def materialize(
    self: Any, shape: Any, device: Any = None, dtype: torch.dtype | None = None
) -> None:
    """Give it its shape, on the device that it was moved to or that is named."""
    is_for_hpu = vars(self).pop("_is_for_hpu", False)
    if device is not None:
        is_for_hpu = torch.device(device).type == "hpu"
    _plain_materialize(self, shape, device="cpu" if is_for_hpu else device, dtype=dtype)
    if is_for_hpu:
        moved = self.detach().to("hpu")
        if isinstance(self, nn.Parameter):
            moved = nn.Parameter(moved, self.requires_grad)
        exchange(self, moved)


def attach() -> None:
    """Give these to lazy parameters and buffers, and to nothing else."""
    global _plain_swap
    _plain_swap = torch.utils.swap_tensors
    torch.utils.swap_tensors = swap_tensors
    _lazy.to = to
    _lazy.materialize = materialize
