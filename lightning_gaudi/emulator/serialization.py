"""``torch.load(map_location="hpu")``: load on the CPU, then move every tensor found."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_plain_load = torch.load


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


def attach() -> None:
    """Put our ``torch.load`` in place."""
    torch.load = _load
