"""How forwards are swapped and put back.

Only the attribute ``forward`` of an instance is swapped, never the module, so that parameter names
and hooks stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import nn

from lightning_gaudi.graphs.stats import GraphStats

_ABSENT = object()
_ATTRIBUTE = "forward"


class ForwardSwap:
    """A swapped ``forward`` that can be put back.

    Swaps of one module may be undone in any order: Lightning ends callbacks in the order in which
    it began them, and two of ours may have swapped the same module.

    Args:
        module: The module.
        replacement: Its new ``forward``.
    """

    def __init__(self, module: nn.Module, replacement: Callable[..., Any]) -> None:
        self._module = module
        self._replacement = replacement
        # Under DDP Lightning has an instance attribute of its own here: restore it, never delete.
        self._before = module.__dict__.get(_ATTRIBUTE, _ABSENT)
        self._above: ForwardSwap | None = None
        self._below = _swap_of(self._before)
        if self._below is not None:
            self._below._above = self
        _SWAPS[id(replacement)] = self
        setattr(module, _ATTRIBUTE, replacement)

    def undo(self) -> None:
        """Put back whatever instance attribute was there before. Calling it again does nothing."""
        if _SWAPS.pop(id(self._replacement), None) is not self:
            return
        if self._below is not None:
            self._below._above = self._above
        if self._above is not None:  # swapped over since: leave that, but not to come back to this
            self._above._before, self._above._below = self._before, self._below
        elif self._before is _ABSENT:
            self._module.__dict__.pop(_ATTRIBUTE, None)
        else:
            setattr(self._module, _ATTRIBUTE, self._before)


_SWAPS: dict[int, ForwardSwap] = {}
"""The swaps in place, by the id of what they put in; each holds that alive."""


def _swap_of(forward: object) -> ForwardSwap | None:
    swap = _SWAPS.get(id(forward))
    return swap if swap is not None and swap._replacement is forward else None


def opaque(replacement: Callable[..., Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """A callable that ``torch.compile`` does not look into, with the signature of another.

    A step or a module around it may be compiled; that must not trace into a capture.
    """

    # Not `wraps(replacement)`: that would copy its attributes, and hold on to graphs.
    @wraps(forward, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        return replacement(*args, **kwargs)

    disabled: Callable[..., Any] = torch.compiler.disable(call)  # type: ignore[no-untyped-call]
    return disabled


class CallCounter:
    """Counts the calls of a module's forward.

    Attributes:
        name: The module's name.
        calls: How often its forward was called.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.calls = 0
        forward = module.forward

        @wraps(forward)
        def counting(*args: Any, **kwargs: Any) -> Any:
            # Inside a compiled target the number would be part of what is compiled.
            if not torch.compiler.is_compiling():
                self.calls += 1
            return forward(*args, **kwargs)

        self.module = module
        self.replacement = counting


@dataclass(frozen=True, kw_only=True)
class Target:
    """A target of one stage.

    Attributes:
        name: Its name.
        module: The module whose forward is swapped.
        replacement: What it is swapped for.
        stats: Its counts.
        calls_before: How many calls there were before the stage.
    """

    name: str
    module: nn.Module
    replacement: Callable[..., Any]
    stats: GraphStats
    calls_before: int


@dataclass
class Installation:
    """All that is swapped for one stage.

    Attributes:
        stage: The stage.
        targets: The targets.
        counters: Counters of children that are no targets.
        warns_unused: Whether a target that no step called is worth a warning.
    """

    stage: str
    targets: list[Target] = field(default_factory=list)
    counters: list[CallCounter] = field(default_factory=list)
    warns_unused: bool = False
    _swaps: list[ForwardSwap] = field(default_factory=list)

    def put_in(self) -> None:
        """Swap everything. If that fails half-way, nothing is."""
        try:
            swapped: list[Target | CallCounter] = [*self.targets, *self.counters]
            for each in swapped:
                self._swaps.append(ForwardSwap(each.module, each.replacement))
        except BaseException:
            self.take_out()
            raise

    def take_out(self) -> None:
        """Put everything back, the last first. Calling it again does nothing."""
        while self._swaps:
            self._swaps.pop().undo()

    def unused(self) -> list[str]:
        """Names of targets that no step called, those inside another one that was called aside."""
        called = [t for t in self.targets if t.stats.calls > t.calls_before]
        inside = {id(module) for target in called for module in target.module.modules()}
        return [target.name for target in self.targets if id(target.module) not in inside]
