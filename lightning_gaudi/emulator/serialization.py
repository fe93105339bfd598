"""``torch.load(map_location="hpu")`` and ``load_state_dict``.

The first loads on the CPU, then moves every tensor found. The second copies into the parameters, as
PyTorch does by itself: that moves swap parameters (see `installation`) must not make loading swap
them too, because a parameter that something refers to weakly, as every RNN does to its weights,
cannot be swapped.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_plain_load = torch.load
_plain_load_state_dict = torch.nn.Module.load_state_dict


def _is_hpu(map_location: Any) -> bool:
    if isinstance(map_location, str):
        return map_location.startswith("hpu")
    return isinstance(map_location, torch.device) and map_location.type == "hpu"


@wraps(_plain_load)
def _load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
    if not _is_hpu(map_location):
        return _plain_load(f, map_location, *args, **kwargs)
    loaded = _plain_load(f, "cpu", *args, **kwargs)
    moved: dict[int, Tensor] = {}  # one tensor under two names stays one tensor

    def move(tensor: Tensor) -> Tensor:
        if id(tensor) not in moved:
            moved[id(tensor)] = tensor.to(map_location)
        return moved[id(tensor)]

    return tree_map_only(Tensor, move, loaded)


@wraps(_plain_load_state_dict)
def _load_state_dict(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(False)
    try:
        return _plain_load_state_dict(self, *args, **kwargs)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def attach() -> None:
    """Put our ``torch.load`` and ``load_state_dict`` in place."""
    torch.load = _load
    torch.nn.Module.load_state_dict = _load_state_dict  # type: ignore[method-assign]
