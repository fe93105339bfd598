"""The ``out=`` overload of an op, through which a replay refreshes a buffer without a copy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload

from lightning_gaudi.emulator.strict import is_strict


@cache
def find_out_overload(func: OpOverload) -> tuple[Callable[..., Any], list[str]] | None:
    """What calls the overload that writes to given tensors, and what it names them; None if none.

    It takes the same arguments as `func` beside the tensors to write to, one for each result. A
    random op has none: how it draws is settled for the overload that the user called. Nor has any
    op in strict mode: what narrows is the call.
    """
    if torch.Tag.nondeterministic_seeded in func.tags or is_strict():
        return None
    wanted = [(a.name, str(a.type)) for a in func._schema.arguments]
    if any(not isinstance(r.type, torch.TensorType) for r in func._schema.returns):
        return None
    packet = func.overloadpacket
    for name in packet.overloads():
        candidate = getattr(packet, name)
        arguments = candidate._schema.arguments
        outs = [a.name for a in arguments if a.is_out]
        if len(outs) != len(func._schema.returns):
            continue
        if [(a.name, str(a.type)) for a in arguments if not a.is_out] == wanted:
            return candidate._op, outs
    return None
