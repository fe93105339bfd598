"""Which modules are sharded as a group, whose parameters are gathered and freed together.

A group should be large enough for one all-gather to pay, and small enough for a card to hold it
whole: a transformer's block. What lies outside all groups belongs to the root, and is whole from
the beginning of a step's forward to the end of its backward.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Collection, Iterator

from torch import nn

from lightning_gaudi.errors import ConfigurationError

WrapPolicy = Collection[type[nn.Module] | str] | Callable[[nn.Module], bool] | None
"""Module classes, class names or paths in the module (with ``*``), or a function of a module."""

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_REPEATING = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def choose_groups(root: nn.Module, policy: WrapPolicy = None) -> dict[str, nn.Module]:
    """The modules below a root that are sharded as groups of their own.

    Without a policy these are the blocks that repeat: children of a ``ModuleList``, ``ModuleDict``
    or ``Sequential`` that have parameters, and whose class occurs there more than once. Blocks
    inside a block belong to it.

    A parameter that several modules use (tied weights) cannot be in two groups. A group that holds
    one which is also used outside it is given up, and its parameters go to the one around it.

    Args:
        root: The module.
        policy: See `WrapPolicy`; None for the blocks.

    Returns:
        Modules by their path, inner ones before those around them; without the root.

    Raises:
        ConfigurationError: The root has no parameters, or the policy names no module that can be
            sharded.
    """
    if next(root.parameters(), None) is None:
        raise ConfigurationError(
            f"{type(root).__name__} has no parameters, so there is nothing to shard. Use "
            'strategy="gaudi".'
        )
    chosen = _blocks(root) if policy is None else _named(root, policy)
    kept = _without_ties(root, chosen)
    return dict(sorted(kept.items(), key=lambda item: -item[0].count(".")))


def outer_groups(root: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules below a root that have a forward and parameters.

    Args:
        root: The module.

    Returns:
        Modules by their path; children of lists and dicts of modules, which have no forward.

    Raises:
        ConfigurationError: Two of them share a parameter, or one lies in none of them.
    """
    outer = dict(_outer(root, ""))
    inside = [set(map(id, module.parameters())) for module in outer.values()]
    owners = Counter(parameter for parameters in inside for parameter in parameters)
    for name, parameter in root.named_parameters():
        if owners[id(parameter)] != 1:
            where = "several of" if owners[id(parameter)] else "none of"
            raise ConfigurationError(
                f"with manual optimization each parameter of {type(root).__name__} must be in one "
                f"of its modules, but {name!r} is in {where} {', '.join(outer) or 'them'}: it "
                "would not be whole when they need it. Put what uses it into one module and call "
                "that, or shard the modules yourself in configure_model."
            )
    return outer


def _outer(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if isinstance(child, _CONTAINERS):
            yield from _outer(child, child_path)
        elif next(child.parameters(), None) is not None:
            yield child_path, child


def _can_be_sharded(module: nn.Module) -> bool:
    return not isinstance(module, _CONTAINERS) and next(module.parameters(), None) is not None


def _blocks(root: nn.Module) -> dict[str, nn.Module]:
    blocks: dict[str, nn.Module] = {}
    for path, module in root.named_modules():
        if not isinstance(module, _REPEATING) or any(
            f"{path}.".startswith(f"{block}.") for block in blocks
        ):
            continue
        candidates = {n: m for n, m in module.named_children() if _can_be_sharded(m)}
        counts = Counter(map(type, candidates.values()))
        for name, child in candidates.items():
            if counts[type(child)] > 1:
                blocks[f"{path}.{name}" if path else name] = child
    return blocks


def _named(root: nn.Module, policy: WrapPolicy) -> dict[str, nn.Module]:
    candidates = {path: m for path, m in root.named_modules() if path and _can_be_sharded(m)}
    if callable(policy):
        chosen = {path: module for path, module in candidates.items() if policy(module)}
    else:
        assert policy is not None
        if isinstance(policy, str):  # which is a collection, too
            policy = [policy]
        for name in policy:
            if not isinstance(name, str) and not (
                isinstance(name, type) and issubclass(name, nn.Module)
            ):
                raise ConfigurationError(
                    "auto_wrap_policy takes classes of modules, their names, paths such as "
                    f"'model.layers.*', or a function of a module, but it has {name!r}."
                )
        chosen = {
            path: module
            for path, module in candidates.items()
            if any(_matches(name, path, module) for name in policy)
        }
    if not chosen:
        classes = sorted({type(module).__name__ for module in candidates.values()})
        what = (
            "a function" if callable(policy) else ", ".join(map(_name, policy or ())) or "nothing"
        )
        raise ConfigurationError(
            f"auto_wrap_policy ({what}) names no module with parameters in "
            f"{type(root).__name__}. It has modules of the classes {', '.join(classes)}, at paths "
            f"such as {', '.join(map(repr, list(candidates)[:3]))}. Leave auto_wrap_policy out to "
            "shard the blocks that repeat."
        )
    return chosen


def _matches(name: type[nn.Module] | str, path: str, module: nn.Module) -> bool:
    if isinstance(name, str):
        return type(module).__name__ == name or fnmatch.fnmatchcase(path, name)
    return isinstance(module, name)


def _name(policy: type[nn.Module] | str) -> str:
    return policy if isinstance(policy, str) else policy.__name__


def _without_ties(root: nn.Module, chosen: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Give up the groups whose parameters are also used outside them."""
    kept = dict(chosen)
    uses = Counter(id(p) for m in root.modules() for p in m.parameters(recurse=False))
    for path, module in chosen.items():
        own = Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))
        if any(uses[parameter] > number for parameter, number in own.items()):
            del kept[path]
    return kept
