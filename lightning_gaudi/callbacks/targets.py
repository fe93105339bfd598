"""Which forwards of a LightningModule are captured."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics import Metric

from lightning_gaudi.callbacks.options import check_targets
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.sharding.modules import is_sharded

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


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
        ConfigurationError: There is no submodule of that name, or parameters are sharded.
    """
    if is_sharded(module):
        raise ConfigurationError(
            f"HPUGraphCallback cannot capture {type(module).__name__}: its parameters are sharded "
            "(FSDP). A forward gathers them into memory that is freed afterwards, and a replay "
            "would read what is no longer there. Leave the callback out, or predict with "
            "GaudiStrategy where the model fits one card."
        )
    if names is None:
        own = getattr(module, "hpu_graph_targets", None)
        names = check_targets(own)
    if names is not None:
        found: dict[int, tuple[str, nn.Module]] = {}
        for name in names:
            target = _find(module, name)
            found.setdefault(id(target), (name, target))  # one module under two names is one
        return dict(found.values()), True
    if _defines_forward(module):
        return {"forward": module}, True
    return dict(children_of(module)), False


def _find(module: LightningModule, name: str) -> nn.Module:
    if name in ("", "forward"):
        return module
    try:
        found = module.get_submodule(name)
    except AttributeError:
        children = ", ".join(repr(child) for child, _ in module.named_children()) or "none"
        raise ConfigurationError(
            f"HPUGraphCallback: {type(module).__name__} has no submodule {name!r} to capture. Its "
            f"children are: {children}; deeper ones are named with dots, and 'forward' is the "
            "module's own."
        ) from None
    if isinstance(found, torch.jit.ScriptModule):
        raise ConfigurationError(
            f"HPUGraphCallback: {name!r} of {type(module).__name__} is a torch.jit module, whose "
            "forward cannot be swapped. Name a module around it, or capture the module that it was "
            "made from."
        )
    return found


def _defines_forward(module: LightningModule) -> bool:
    return type(module).forward is not LightningModule.forward


def children_of(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Children that can be swapped, by name: lists and dicts are looked into.

    Metrics are none, for they keep their state; scripted modules neither (see `scripted_children`).
    """
    for name, child in _called_children(module, prefix):
        if not isinstance(child, torch.jit.ScriptModule):
            yield name, child


def scripted_children(module: nn.Module) -> list[str]:
    """Names of children whose forward cannot be swapped, since it is TorchScript."""
    return [
        name
        for name, child in _called_children(module)
        if isinstance(child, torch.jit.ScriptModule)
    ]


def _called_children(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, Metric):
            continue
        if isinstance(child, _CONTAINERS):
            yield from _called_children(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child
