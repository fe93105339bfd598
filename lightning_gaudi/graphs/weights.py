"""Notices when a module is no longer the one that was captured.

A graph reads the weights where they were. Values changed in place it sees; a weight that was
replaced (``.data =``, ``load_state_dict(assign=True)``, a module moved away and back, an adapter
added) it does not, and neither does it see a submodule switched between train and eval, nor run a
hook. So before each call the module is compared with what it was at capture: the same parameters,
buffers and submodules as objects, the same storages, the same switches.

That must be cheap, for a BERT has hundreds of each. So there are two comparisons. The exact one
describes the module anew and takes as long as that. The quick one asks whether everything is the
very object that it was, in a few passes that run in C:

- of every submodule its dictionaries and its switch;
- in those dictionaries, which are few once the empty ones are set aside, every name and value;
- of every weight its storage, then type, dtype, shape and strides in one `tensor_check`. Where a
  weight fills its storage its offset cannot be another; elsewhere that is compared too.

Where the quick one finds a difference, the exact one decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from operator import attrgetter, is_, itemgetter, methodcaller
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from lightning_gaudi.graphs.tensor_check import TensorCheck, tensor_check
from lightning_gaudi.graphs.transformers_masks import is_idle_hook

# Private to torch.nn, but every module has had them since before torch 2.6; the public ways to ask
# (named_parameters, named_modules) take a hundred times as long.
_SEEN = (
    "training",
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
)
# A module's own dictionaries, each with a copy of what was in it.
Tables = list[tuple[dict[str, Any], dict[str, Any]]]

_read_dict = itemgetter(*_SEEN)
_read_object = attrgetter(*_SEEN)


# Filled by ``register_module_forward_hook`` and its sister; there is no public way to ask.
_GLOBAL_HOOKS: list[Any] = [
    getattr(nn_module, name, {}) for name in ("_global_forward_hooks", "_global_forward_pre_hooks")
]


class ModuleWatch:
    """Remembers a module's weights and switches, and compares.

    Args:
        module: The module that is captured.

    Attributes:
        switches: Stands for which submodules are in training mode, as of the last `has_changed`:
            equal numbers, equal switches.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._known_switches: dict[tuple[bool, ...], int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take the module as it is now."""
        self._modules = list(self._module.modules())
        self._description = self._describe()
        self._remember()

    def has_changed(self, state: Any = None) -> bool:
        """Whether weights or submodules were replaced since the last `refresh`.

        Args:
            state: Whatever besides the weights decides how ops on them dispatch: inference mode
                and autocast. A hashable.
        """
        look = self._look
        if look is None:
            return True
        if look.is_the_same(state):
            return False
        if self._describe() != self._description:
            return True
        self._remember()
        return False

    def hooked(self) -> str | None:
        """The class of the first submodule with a forward hook, which a replay would not run.

        The module's own hooks do not count: they run around its forward. To be asked after
        `has_changed`.
        """
        if self._look is not None and not any(self._look.hooks):
            return None
        if any(_GLOBAL_HOOKS):
            return "(every module)"
        for module in self._modules[1:]:
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
                if not is_idle_hook(hook):
                    return type(module).__name__
        return None

    def weights(self) -> list[Tensor]:
        """All parameters and buffers, each as often as modules have it."""
        return _weights_of(self._modules)

    def tables(self) -> Tables:
        """The modules' own dictionaries of weights and submodules, each with a copy."""
        return [
            (table, dict(table))
            for module in self._modules
            for table in (module._parameters, module._buffers, module._modules)
        ]

    def forget(self) -> None:
        """Let go of the weights; the module counts as changed until the next `refresh`."""
        self._look: _Look | None = None

    def requires_grad(self) -> bool:
        """Whether any parameter wants a gradient."""
        return any(
            parameter is not None and parameter.requires_grad
            for module in self._modules
            for parameter in module._parameters.values()
        )

    def _describe(self) -> list[Any]:
        """The exact comparison's view. What it names by id is held by the `_Look`."""
        seen: list[Any] = []
        for module in self._modules:
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        seen += (
                            name,
                            id(tensor),
                            tensor.untyped_storage()._cdata,
                            tensor.storage_offset(),
                            *_layout_of(tensor),
                        )
            for name, child in module._modules.items():
                seen += (name, id(child))
            seen.append(None)
        return seen

    def _remember(self) -> None:
        self._look = _Look(self._modules)
        switches = tuple(module.training for module in self._modules)
        self.switches = self._known_switches.setdefault(switches, len(self._known_switches))


class _Look:
    """The quick comparison, with the modules as they are now.

    Args:
        modules: A module and all that are in it.

    Attributes:
        hooks: The dictionaries of forward hooks: of every module, and of all but the first.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        # A scripted module has these names, but not in its own dictionary.
        is_plain = all(vars(module).keys() >= set(_SEEN) for module in modules)
        self._read: Any = _read_dict if is_plain else _read_object
        self._modules: list[Any] = list(map(vars, modules)) if is_plain else list(modules)
        tables: list[dict[str, Any]] = [
            table
            for module in modules
            for table in (module._parameters, module._buffers, module._modules)
        ]
        self._filled = [table for table in tables if table]
        self._empty = [table for table in tables if not table]
        are_dicts = all(isinstance(table, dict) for table in tables)
        self._values_of: Any = dict.values if are_dicts else methodcaller("values")
        self._names_of: Any = dict.keys if are_dicts else methodcaller("keys")
        self._sizes = list(map(len, self._filled))
        self.hooks = [
            *_GLOBAL_HOOKS,
            *(
                hooks
                for module in modules[1:]
                for hooks in (module._forward_hooks, module._forward_pre_hooks)
            ),
        ]
        self._weights = list({id(tensor): tensor for tensor in _weights_of(modules)}.values())
        self._partial = [
            tensor
            for tensor in self._weights
            if tensor.numel() * tensor.element_size() != tensor.untyped_storage().nbytes()
        ]
        self._offsets = self._read_offsets()
        # Storages are held, so that a new one cannot have the address of an old one, and so that
        # PyTorch answers with the same Python object.
        self._seen = list(self._objects())
        self._layouts = list(map(_layout_of, self._weights))
        self._checks: dict[Any, TensorCheck | None] = {}

    def is_the_same(self, state: Any) -> bool:
        """Whether nothing has changed; False may also mean that something only looks different."""
        check = self._checks.get(state)
        return (
            all(map(is_, self._objects(), self._seen))
            and not any(self._empty)
            and list(map(len, self._filled)) == self._sizes
            and (not self._partial or self._read_offsets() == self._offsets)
            and (check(*self._weights) if check is not None else self._have_same_layouts(state))
        )

    def _objects(self) -> Iterator[Any]:
        """Everything that must be the very object that it was, in one order."""
        return chain(
            chain.from_iterable(map(self._read, self._modules)),
            chain.from_iterable(map(self._values_of, self._filled)),
            chain.from_iterable(map(self._names_of, self._filled)),
            map(Tensor.untyped_storage, self._weights),
        )

    def _read_offsets(self) -> list[Any]:
        return list(map(Tensor.storage_offset, self._partial))

    def _have_same_layouts(self, state: Any) -> bool:
        if list(map(_layout_of, self._weights)) != self._layouts:
            return False
        if state not in self._checks and self._weights:
            self._checks[state] = tensor_check(self._weights)
        return True


def _weights_of(modules: list[nn.Module]) -> list[Tensor]:
    return [
        tensor
        for module in modules
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    ]


def put_back(tables: Tables) -> str | None:
    """Undo what a forward has put into modules in place of what was there.

    Args:
        tables: From `ModuleWatch.tables`, before it ran.

    Returns:
        The name of the first weight or submodule that was another one; None if none was.
    """
    first: str | None = None
    for table, before in tables:
        names = [name for name in {**before, **table} if table.get(name) is not before.get(name)]
        if names:
            first = first or names[0]
            table.clear()
            table.update(before)
    return first


def _layout_of(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.dtype, tensor.shape, tensor.stride())
