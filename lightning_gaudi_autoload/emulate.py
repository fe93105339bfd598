"""Joins Lightning under ``lightning-gaudi emulate``, in every process that it brings about.

Lightning asks `callbacks`, an entry point of the group ``lightning.pytorch.callbacks_factory``,
for every Trainer. Further ranks are started as ``python SCRIPT``; there the HPU must be registered
before the first Trainer is made, which `register_after_lightning` sees to.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

VARIABLE = "LIGHTNING_GAUDI_EMULATE"
_LIGHTNING = "lightning"


def callbacks() -> list[Any]:
    """What joins a Trainer: nothing outside of ``lightning-gaudi emulate``."""
    if not os.environ.get(VARIABLE):
        return []
    module = importlib.import_module("lightning_gaudi.cli.script_monitor")
    found: list[Any] = module.monitors_for_trainer()
    return found


def register_after_lightning() -> None:
    """Import `lightning_gaudi` as soon as Lightning has been imported."""
    sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds Lightning once, with a loader that imports this package after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _LIGHTNING:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Runs a module by its own loader, then imports `lightning_gaudi`."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        importlib.import_module("lightning_gaudi")
