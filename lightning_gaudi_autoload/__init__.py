"""Loads the emulated HPU under any script where ``LIGHTNING_GAUDI_EMULATOR=1``, and only there.

A script that never mentions `lightning_gaudi` reaches us in two ways. ``import torch`` calls
`load`, an entry point of the group ``torch.backends``. A script whose first line is
``import habana_frameworks.torch`` would fail before that; so the ``.pth`` file beside this one,
which Python reads when it starts, calls `find_before_torch`.

This is a package of its own because importing any module of `lightning_gaudi` imports Lightning,
which nobody should pay for inside ``import torch``. Without the variable nothing is imported.

PYTEST_DONT_REWRITE, since pytest warns of a package with a plugin that was imported before pytest.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

_VARIABLE = "LIGHTNING_GAUDI_EMULATOR"
_PACKAGE = "lightning_gaudi"
_SOFTWARE = "habana_frameworks"


def load() -> None:
    """Install the emulated HPU where the environment asks for it; called by ``import torch``.

    Raises:
        ValueError: ``LIGHTNING_GAUDI_EMULATOR`` is neither 0 nor 1.
        EmulatorError: The emulated HPU cannot be installed here.
    """
    value = os.environ.get(_VARIABLE, "0")
    if value not in ("", "0", "1"):
        raise ValueError(f"{_VARIABLE} must be 1 (emulate the HPU) or 0, but it is {value!r}.")
    if value == "1" and _PACKAGE not in sys.modules:  # whose own import installs it otherwise
        _install()


def _install() -> None:
    """Install the emulated HPU without running ``lightning_gaudi/__init__.py``."""
    spec = importlib.machinery.PathFinder.find_spec(_PACKAGE)
    assert spec is not None, f"{_PACKAGE} is not importable, but its entry point is installed"
    package = sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    try:
        emulator = importlib.import_module(f"{_PACKAGE}.emulator")
        emulator.install()
        # All of it now: a later ``from lightning_gaudi.emulator import ...`` of a module that is
        # not there yet would import the whole of `lightning_gaudi` on its way.
        for module in pkgutil.iter_modules(emulator.__path__):
            if not module.ispkg:
                importlib.import_module(f"{_PACKAGE}.emulator.{module.name}")
    finally:
        # The empty package must not pass for the real one. Its modules stay: the real one, when it
        # is imported, finds them as they are.
        if sys.modules.get(_PACKAGE) is package:
            del sys.modules[_PACKAGE]


class _BeforeTorch:
    """Finds the Gaudi software before anything has imported torch, by importing torch."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _SOFTWARE:
            return None
        sys.meta_path.remove(self)
        importlib.import_module("torch")
        if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") != "1":
            load()  # the user turned torch's call off, but asks for the software by name now
        return importlib.util.find_spec(fullname)


def find_before_torch() -> None:
    """Make ``import habana_frameworks`` find the emulated HPU; called when Python starts."""
    sys.meta_path.insert(0, _BeforeTorch())
    if os.environ.get("LIGHTNING_GAUDI_EMULATE"):  # under ``lightning-gaudi emulate``
        importlib.import_module("lightning_gaudi_autoload.emulate").register_after_lightning()
