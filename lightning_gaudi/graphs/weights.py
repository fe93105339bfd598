"""Notices when a module is no longer the one that was captured.

A graph reads the weights where they were. Values changed in place it sees; a weight that was
replaced (``.data =``, ``load_state_dict(assign=True)``, a module moved away and back, an adapter
added) it does not, and neither does it see a submodule switched between train and eval, nor run a
hook. So before each call the module is compared with what it was at capture: the same parameters,
buffers and submodules as objects, the same storages, the same switches.
"""

from __future__ import annotations

from torch import nn


class ModuleWatch:
    """Remembers a module's weights and switches, and compares.

    The comparison runs before every replay, so it reads the modules' own dictionaries instead of
    walking ``named_parameters()``, which takes hundreds of microseconds for a BERT.

    Args:
        module: The module that is captured.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.refresh()

    def refresh(self) -> None:
        """Take the module as it is now."""
        self._modules = list(self._module.modules())
        self._weights = self._read_weights()
        # The storages are held, so that a new one cannot have the address of an old one.
        self._held = [
            tensor.untyped_storage()
            for module in self._modules
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        ]

    def has_changed(self) -> bool:
        """Whether weights or submodules were replaced since the last `refresh`."""
        return self._read_weights() != self._weights

    def switches(self) -> tuple[bool, ...]:
        """Which submodules are in training mode."""
        return tuple([module.training for module in self._modules])

    def hooked(self) -> str | None:
        """The class of the first submodule with a forward hook, which a replay would not run.

        The module's own hooks do not count: they run around its forward.
        """
        for module in self._modules[1:]:
            if module._forward_hooks or module._forward_pre_hooks:
                return type(module).__name__
        return None

    def weight_ids(self) -> set[int]:
        """The ids of all parameters and buffers: results that are one of them are not cloned."""
        return {
            id(tensor)
            for module in self._modules
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        }

    def requires_grad(self) -> bool:
        """Whether any parameter wants a gradient."""
        return any(
            parameter is not None and parameter.requires_grad
            for module in self._modules
            for parameter in module._parameters.values()
        )

    def _read_weights(self) -> list[int]:
        seen: list[int] = []
        for module in self._modules:
            for tensors in (module._parameters, module._buffers):
                for tensor in tensors.values():
                    if tensor is not None:
                        seen += (id(tensor), tensor.untyped_storage()._cdata)
            seen += map(id, module._modules.values())
        return seen
