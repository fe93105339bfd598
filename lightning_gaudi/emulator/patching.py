"""Put a function of ours where PyTorch's own was."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch.jit._builtins as _builtins


def replace(owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Replace ``owner.name``; TorchScript goes on compiling calls of it as the builtin it was."""
    plain = getattr(owner, name)
    update_wrapper(function, plain)
    builtin = _builtins._find_builtin(plain)  # type: ignore[no-untyped-call]
    if builtin is not None:
        _builtins._register_builtin(function, builtin)
    setattr(owner, name, function)
