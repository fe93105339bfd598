"""What a target is in eager and compile mode, where there are no HPU graphs: compiled."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from functools import update_wrapper
from typing import Any

import torch

from lightning_gaudi.graphs.key import Key, key_of
from lightning_gaudi.graphs.replay import OnFailure
from lightning_gaudi.graphs.stats import GraphRow, GraphStats
from lightning_gaudi.graphs.structure import UnsupportedValueError
from lightning_gaudi.graphs.warmup import example_call
from lightning_gaudi.runtime import compilation


class CompiledForward:
    """A callable compiled with static shapes, one compilation for each kind of call.

    Gradients flow as usual. PyTorch checks by itself whether a call fits what was compiled: modes,
    attributes, replaced weights.

    Args:
        fn: The callable.
        name: What messages call it.
        max_graphs: For how many kinds of calls it compiles; further ones run op by op.
        on_failure: What to do where it cannot be compiled: raise, or run op by op (``"eager"``).

    Attributes:
        stats: ``captures`` counts calls that compiled something, ``replays`` those that did not.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str,
        max_graphs: int = 16,
        on_failure: OnFailure = "raise",
    ) -> None:
        update_wrapper(self, fn, updated=())
        self.name = name
        self.stats = GraphStats()
        self._fn = fn
        self._max_graphs = max_graphs
        self._on_failure = on_failure
        self._num_compilations = 0
        self._keys: set[Key] = set()
        self._failed = False
        self._said: set[str] = set()
        self._compiled = compilation.without_recompile_limit(
            compilation.compile_static(fn, self._count)
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the callable, compiled.

        Raises:
            Exception: Whatever the callable, or its compilation, raises.
        """
        if torch.compiler.is_compiling():  # inside another target
            return self._fn(*args, **kwargs)
        if self._failed or not self._has_room(args, kwargs):
            self.stats.eager_calls += 1
            return self._fn(*args, **kwargs)
        started, before = time.perf_counter(), self._num_compilations
        try:
            result = self._compiled(*args, **kwargs)
        except Exception as error:
            if self._on_failure == "raise" or not _is_of_the_compiler(error):
                raise
            self._failed = True
            self._say_once(f"{self.name} runs op by op from now on: it does not compile. {error}")
            self.stats.eager_calls += 1
            return self._fn(*args, **kwargs)
        if self._num_compilations == before:
            self.stats.replays += 1
        else:
            self.stats.note_graph(GraphRow(capture_seconds=time.perf_counter() - started))
        return result

    def wraps(self, fn: Callable[..., Any]) -> bool:
        """Whether this is the compilation of that callable."""
        return fn == self._fn

    def warmup(self, calls: Iterable[Any]) -> None:
        """Compile for calls to come, by running them on zeros. See `GraphedForward.warmup`."""
        for spec in calls:
            args, kwargs = example_call(spec)
            self(*args, **kwargs)

    def _count(self) -> None:
        self._num_compilations += 1

    def _has_room(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        try:
            key, _ = key_of(args, kwargs)
        except UnsupportedValueError:
            return True  # PyTorch guards it
        key = (*key, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        if key in self._keys:
            return True
        if len(self._keys) < self._max_graphs:
            self._keys.add(key)
            return True
        self._say_once(
            f"{self.name} has been called with more than max_graphs={self._max_graphs} kinds of "
            "arguments; further ones run op by op. Fix the shapes (pad to a few sizes), or raise "
            "max_graphs."
        )
        return False

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=4)


def _is_of_the_compiler(error: Exception) -> bool:
    """Whether an error comes from compiling rather than from the callable."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)
