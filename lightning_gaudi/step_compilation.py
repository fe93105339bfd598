"""Compile mode: a LightningModule's forward and steps become compiled functions.

What is compiled is what the user wrote: ``forward`` and those steps that the class defines. What is
Lightning's own (``self.log``, ``self.manual_backward``) stays out of it: PyTorch splits a step
there, as at a value read on the host, and compiles the parts. Backward and optimizer run as in
eager mode, the backward's kernels from the compiled graph.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule

from lightning_gaudi.runtime import compilation

_NAMES = ("forward", "training_step", "validation_step", "test_step", "predict_step")
# What steps call. PyTorch 2.13 fails where it traces into some of them (`log` looks at signatures).
_OF_LIGHTNING = (
    "log",
    "log_dict",
    "print",
    "optimizers",
    "lr_schedulers",
    "manual_backward",
    "clip_gradients",
    "toggle_optimizer",
    "untoggle_optimizer",
    "all_gather",
)
_ABSENT = object()


class CompiledSteps:
    """Forward and steps of a module, compiled until `undo`.

    A module that the user has compiled (``torch.compile(module)``) stays as it is.

    Args:
        module: The module. Its instance attributes of these names are set.

    Raises:
        ExecutionModeError: The software runs in lazy mode.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self._before: dict[str, Any] = {}
        # Lightning's mark of a compiled module; without it PyTorch compiles it a second time.
        if getattr(module, "_compiler_ctx", None) is not None:
            return
        for name in _NAMES:
            if _is_users_own(module, name):
                self._swap(name, compilation.compile_static(getattr(module, name)))
        for name in _OF_LIGHTNING:
            self._swap(name, torch.compiler.disable(getattr(module, name)))  # type: ignore[no-untyped-call]

    def _swap(self, name: str, function: Any) -> None:
        self._before[name] = self._module.__dict__.get(name, _ABSENT)
        setattr(self._module, name, function)

    def undo(self) -> None:
        """Put back what was there before. Calling it again does nothing."""
        while self._before:
            name, before = self._before.popitem()
            if before is _ABSENT:
                self._module.__dict__.pop(name, None)
            else:
                setattr(self._module, name, before)


def _is_users_own(module: LightningModule, name: str) -> bool:
    return name in module.__dict__ or getattr(type(module), name) is not getattr(
        LightningModule, name
    )
