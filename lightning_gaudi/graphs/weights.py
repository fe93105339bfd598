"""Notices when a module is no longer the one that was captured.

A graph reads the weights where they were. Values changed in place it sees; a weight that was
replaced (``.data =``, ``load_state_dict(assign=True)``, a module moved away and back, an adapter
added) it does not, and neither does it see a submodule switched between train and eval, nor run a
hook. So before each call the module is compared with what it was at capture: the same parameters,
buffers and submodules as objects, the same storages, the same switches.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as nn_module


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
        self._held = [tensor.untyped_storage() for tensor in self.weights()]

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
        if _global_hooks():
            return "(every module)"
        for module in self._modules[1:]:
            if module._forward_hooks or module._forward_pre_hooks:
                return type(module).__name__
        return None

    def weights(self) -> list[Tensor]:
        """All parameters and buffers."""
        return [
            tensor
            for module in self._modules
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        ]

    def forget(self) -> None:
        """Let go of the weights; the module counts as changed until the next `refresh`."""
        self._weights = []
        self._held = []

    def requires_grad(self) -> bool:
        """Whether any parameter wants a gradient."""
        return any(
            parameter is not None and parameter.requires_grad
            for module in self._modules
            for parameter in module._parameters.values()
        )

    def _read_weights(self) -> list[Any]:
        seen: list[Any] = []
        for module in self._modules:
            for tensors in (module._parameters, module._buffers):
                for tensor in tensors.values():
                    if tensor is not None:
                        seen += (
                            id(tensor),
                            tensor.untyped_storage()._cdata,
                            tensor.storage_offset(),
                            tensor.dtype,
                            tensor.shape,
                            tensor.stride(),
                        )
            seen += map(id, module._modules.values())
        return seen


def _global_hooks() -> bool:
    """Whether ``register_module_forward_hook`` or its sister is in use; no public way to ask."""
    return bool(
        getattr(nn_module, "_global_forward_hooks", None)
        or getattr(nn_module, "_global_forward_pre_hooks", None)
    )
