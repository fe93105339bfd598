"""``torch.compile`` with the Gaudi backend. Eager mode only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightning_gaudi.errors import ExecutionModeError
from lightning_gaudi.runtime import loading

BACKEND = "hpu_backend"


def is_supported() -> bool:
    """Whether the backend exists in this process: the software is loaded, in eager mode."""
    return loading.is_loaded() and not loading.is_lazy()


def compile_static(
    fn: Callable[..., Any], on_compile: Callable[[], None] | None = None
) -> Callable[..., Any]:
    """Compile a callable with static shapes: each new shape is a compilation.

    Args:
        fn: The callable.
        on_compile: Called once for each graph that is compiled, its backward not counted.

    Returns:
        The compiled callable; it compiles when it is called.

    Raises:
        ExecutionModeError: The software runs in lazy mode, which has no such backend.
    """
    if not is_supported():
        raise ExecutionModeError(
            f"torch.compile(backend={BACKEND!r}) needs the Gaudi software in eager mode, and it "
            + ("runs in lazy mode." if loading.is_loaded() else "is not loaded.")
            + " Use GaudiStrategy(mode='compile')."
        )
    loading.module("torch.dynamo.compile_backend")  # registers the backend
    compiled: Callable[..., Any] = torch.compile(fn, backend=_backend(on_compile), dynamic=False)
    return compiled


def without_recompile_limit(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled callable with room for as many shapes as its caller lets through.

    PyTorch keeps 8 compilations of one piece of code by default, whichever modules run it, and runs
    further ones op by op: too few for several modules of one class.
    """
    from torch._dynamo import config

    # Named cache_size_limit up to torch 2.6; documented settings, though in a private module.
    names = ("recompile_limit", "accumulated_recompile_limit")
    older = ("cache_size_limit", "accumulated_cache_size_limit")
    known = [n for n in (names if hasattr(config, names[0]) else older) if hasattr(config, n)]
    settings: dict[str, Any] = dict.fromkeys(known, _NO_LIMIT)

    def call(*args: Any, **kwargs: Any) -> Any:
        with config.patch(settings):
            return fn(*args, **kwargs)

    return call


_NO_LIMIT = 1_000_000


def _backend(on_compile: Callable[[], None] | None) -> Any:
    """The backend; with somebody to tell, wrapped, so that compilations can be counted."""
    if on_compile is None:
        return BACKEND
    from torch._dynamo import lookup_backend

    backend = lookup_backend(BACKEND)

    def counting(graph_module: Any, example_inputs: Any, **kwargs: Any) -> Any:
        on_compile()
        return backend(graph_module, example_inputs, **kwargs)

    return counting
