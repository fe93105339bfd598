"""How many rows and tokens a batch has, told from shapes: nothing is read from the device."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def samples_in(batch: Any) -> int | None:
    """Rows of a batch: of its ``input_ids``, else of its first tensor, else of its first list.

    Returns:
        None where it has none of these.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else None
    if isinstance(batch, Mapping):
        ids = batch.get("input_ids")
        values = [ids, *batch.values()] if isinstance(ids, Tensor) else list(batch.values())
    elif isinstance(batch, (list, tuple)):
        values = list(batch)
        if not values:
            return None
        if not any(isinstance(v, (Tensor, Mapping, list, tuple)) for v in values):
            return len(values)  # of prompts, say
        if isinstance(batch, list) and all(isinstance(v, Mapping) for v in values):
            return len(values)
    else:
        return None
    for value in values:
        if isinstance(value, Tensor) and value.ndim:
            return value.shape[0]
    for value in values:
        if isinstance(value, Mapping):
            return samples_in(value)
        if isinstance(value, (list, tuple)):
            return len(value)
    return None


def tokens_in(batch: Any) -> int | None:
    """Tokens of a batch: the places of its ``input_ids``, padding included.

    Returns:
        None where it has no such tensor.
    """
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return ids.numel() if isinstance(ids, Tensor) else None


def checked_count(name: str, value: Any) -> int:
    """Check what a function of the user has counted.

    Raises:
        TypeError: It is no whole number of the host.
    """
    if not isinstance(value, Tensor):
        try:
            return operator.index(value)
        except TypeError:
            pass
    hint = " A tensor would be a host read in every step." if isinstance(value, Tensor) else ""
    raise TypeError(
        f"{name} must return a whole number, such as a size from batch['input_ids'].shape, but it "
        f"returned {type(value).__name__}.{hint}"
    )
