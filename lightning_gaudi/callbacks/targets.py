"""Which forwards of a LightningModule are captured, and how a forward is swapped and put back.

Only the attribute ``forward`` of an instance is swapped, never the module, so that parameter names
and hooks stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics import Metric

from lightning_gaudi.errors import ConfigurationError

_ABSENT = object()
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


class ForwardSwap:
    """A swapped ``forward`` that can be put back.

    Args:
        module: The module.
        replacement: Its new ``forward``.
    """

    def __init__(self, module: nn.Module, replacement: Callable[..., Any]) -> None:
        self._module = module
        # Under DDP Lightning has an instance attribute of its own here: restore it, never delete.
        self._before = module.__dict__.get("forward", _ABSENT)
        module.forward = replacement

    def undo(self) -> None:
        """Put back whatever instance attribute was there before. Calling it again does nothing."""
        if self._before is _ABSENT:
            self._module.__dict__.pop("forward", None)
        else:
            self._module.forward = self._before


def choose_targets(
    module: LightningModule, names: tuple[str, ...] | None
) -> tuple[dict[str, nn.Module], bool]:
    """The modules whose forward is to be captured, by name.

    Args:
        module: The LightningModule.
        names: Names of submodules, ``"forward"`` for the module's own; None to choose: what the
            module's ``hpu_graph_targets`` names, else its own forward if its class defines one,
            else each child.

    Returns:
        The modules, and whether they were named or found to define a forward, so that one that no
        step calls is worth a warning.

    Raises:
        ConfigurationError: There is no submodule of that name.
    """
    if names is None:
        own = getattr(module, "hpu_graph_targets", None)
        names = (own,) if isinstance(own, str) else None if own is None else tuple(own)
    if names is not None:
        return {name: _find(module, name) for name in names}, True
    if _defines_forward(module):
        return {"forward": module}, True
    return dict(_children(module)), False


def count_calls(module: LightningModule, skip: dict[str, nn.Module]) -> Iterator[CallCounter]:
    """Count the calls of the children that are no targets, to name them in a warning."""
    chosen = set(map(id, skip.values()))
    for name, child in _children(module):
        if id(child) not in chosen:
            yield CallCounter(name, child)


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
            self.calls += 1
            return forward(*args, **kwargs)

        self.swap = ForwardSwap(module, counting)


def _find(module: LightningModule, name: str) -> nn.Module:
    if name in ("", "forward"):
        return module
    try:
        return module.get_submodule(name)
    except AttributeError:
        children = ", ".join(repr(child) for child, _ in module.named_children()) or "none"
        raise ConfigurationError(
            f"HPUGraphCallback: {type(module).__name__} has no submodule {name!r} to capture. Its "
            f"children are: {children}; deeper ones are named with dots, and 'forward' is the "
            "module's own."
        ) from None


def _defines_forward(module: LightningModule) -> bool:
    return type(module).forward is not LightningModule.forward


def _children(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Children that can be called: lists and dicts are looked into, metrics keep their state."""
    for name, child in module.named_children():
        if isinstance(child, Metric):
            continue
        if isinstance(child, _CONTAINERS):
            yield from _children(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child
