"""Put a function of ours where PyTorch's own was."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from types import ModuleType
from typing import Any

import torch.jit._builtins as _builtins


def replace(owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Replace ``owner.name``; TorchScript goes on compiling calls of it as the builtin it was."""
    plain = getattr(owner, name)
    update_wrapper(function, plain)
    # Pickle finds a function by these; a builtin's own qualified name does not lead to `owner`.
    if isinstance(owner, ModuleType):
        function.__module__, function.__qualname__ = owner.__name__, name
    builtin = _builtins._find_builtin(plain)  # type: ignore[no-untyped-call]
    if builtin is not None:
        _builtins._register_builtin(function, builtin)
    setattr(owner, name, function)
