"""Compile a graph of ATen ops on plain CPU tensors with Inductor: C++ instead of op by op.

Asked for with ``LIGHTNING_GAUDI_EMULATOR_COMPILE=1``. Needs a C++ compiler. Inductor's own cache of
compiled code is used as PyTorch has it set up (``TORCHINDUCTOR_CACHE_DIR``), so the second process
that compiles the same graph only loads it.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import _disable_current_modes

_OPTIONS: dict[str, Any] = {
    "size_asserts": False,  # the inputs are the ones that are compiled for
    # Threads for a few thousand numbers wait for each other longer than they compute, above all
    # where the machine has other work: MiniLM, batch 1, on 2 busy cores, took a tenth less time.
    "cpp.min_chunk_size": 16384,
}
_warned: set[str] = set()


class NotCompiledError(RuntimeError):
    """A graph that Inductor cannot take; the message says why."""


class Compiled(NamedTuple):
    """A compiled graph.

    Attributes:
        call: The function; it takes the graph's inputs and returns its outputs.
        seconds: How long the compilation took.
    """

    call: Callable[..., Any]
    seconds: float


def is_requested() -> bool:
    """Whether graphs shall be compiled."""
    return os.environ.get("LIGHTNING_GAUDI_EMULATOR_COMPILE") == "1"


def compile_graph(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
    """Compile a graph for inputs of exactly these shapes.

    Args:
        graph_module: A graph of ATen ops that returns a tuple; it is not changed.
        inputs: Plain CPU tensors and numbers.

    Raises:
        NotCompiledError: There is no C++ compiler, or Inductor fails on this graph.
    """
    # Its import takes seconds, and few processes get here.
    import torch._inductor as inductor

    check_compiler()
    start = time.perf_counter()
    try:
        # A dispatch mode of the caller's, such as one that AOTAutograd checks a first run with,
        # has nothing to see here, and tracing under it fails.
        with (
            _disable_current_modes(),
            torch.inference_mode(False),
            torch.no_grad(),
            torch._C._DisableAutocast(),
        ):
            fresh = [_stand_in(value) for value in inputs]
            call = inductor.compile(graph_module, fresh, options=dict(_OPTIONS))
            assert callable(call)
    except Exception as error:  # Inductor raises whatever its passes and the C++ compiler raise
        reason = str(error).strip().partition("\n")[0]
        raise NotCompiledError(f"{type(error).__name__}: {reason}") from error
    return Compiled(call, time.perf_counter() - start)


def warn_once(reason: str) -> None:
    """Say that a graph is run op by op, once for each reason."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"LIGHTNING_GAUDI_EMULATOR_COMPILE=1: a graph is run op by op instead: {reason}",
            stacklevel=2,
        )


def _stand_in(value: Any) -> Any:
    """An input as Inductor shall see it: no inference tensor, which it would treat apart."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)


def check_compiler() -> None:
    """Look for the C++ compiler that Inductor would call.

    Raises:
        NotCompiledError: There is none.
    """
    import torch._inductor.config as config

    configured = config.cpp.cxx
    candidates = configured if isinstance(configured, tuple) else (configured,)
    names = [name for name in candidates if name]
    if not any(shutil.which(name) for name in names):
        raise NotCompiledError(
            f"no C++ compiler was found (looked for {', '.join(names)}, the choice of the "
            "environment variable CXX). Install one, for example with apt-get install g++, or name "
            "one in CXX."
        )
