"""Put the emulated HPU into this process.

PyTorch's own way to write a backend in Python names the device and lets factories reach us; a
finder in front of `sys.meta_path` answers imports of ``habana_frameworks``. Nothing is undone:
a device, once named, stays for the life of the process.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from lightning_gaudi.emulator.errors import EmulatorError

_PACKAGE = "habana_frameworks"
_FOLDER = Path(__file__).parent
_is_installed = False


def is_installed() -> bool:
    """Whether this process has the emulated HPU."""
    return _is_installed


def device_count() -> int:
    """Cards of this machine: ``LIGHTNING_GAUDI_EMULATOR_DEVICES``, 1 by default.

    Raises:
        ValueError: The variable is no whole number of 1 or more.
    """
    value = os.environ.get("LIGHTNING_GAUDI_EMULATOR_DEVICES", "1")
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(
            "LIGHTNING_GAUDI_EMULATOR_DEVICES must be a whole number of 1 or more, "
            f"but it is {value!r}."
        )
    return int(value)


def install() -> None:
    """Give this process an emulated HPU. Calling it again does nothing.

    Raises:
        EmulatorError: The real Gaudi software is loaded, torch is too old, or another backend has
            taken PyTorch's slot for backends from outside its tree.
    """
    global _is_installed
    if _is_installed:
        return
    _check_process()
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as setup

    from lightning_gaudi.emulator import (
        accelerator_module,
        autocast,
        composites,
        device_module,
        distributed_tensor,
        factories,
        functions,
        generator,
        gradients,
        grouping,
        memory,
        methods,
        serialization,
        swapping,
        sync_batch_norm,
        tensor,
        tracing,
        transfer,
        uninitialized,
    )

    setup("hpu", backend_module=device_module)
    # PyTorch has fused encoder layers for a backend from outside its tree by this name. Habana's
    # device is inside the tree, so a card never takes them, and neither may we.
    torch.utils.backend_registration._privateuse1_backend_name = "privateuseone"
    tensor.name_device()
    factories.register()
    for part in (
        memory,
        transfer,
        methods,
        functions,
        composites,
        sync_batch_norm,
        gradients,
        grouping,
        swapping,
        uninitialized,
        autocast,
        serialization,
        generator,
        accelerator_module,
        tracing,
        distributed_tensor,
    ):
        part.attach()
    sys.meta_path.insert(0, _Finder())
    _is_installed = True


def _check_process() -> None:
    loaded = sys.modules.get(_PACKAGE)
    if loaded is not None:
        raise EmulatorError(
            "the emulated HPU was asked for, but the real Gaudi software is loaded already "
            f"({getattr(loaded, '__file__', _PACKAGE)}). Unset LIGHTNING_GAUDI_EMULATOR to use the "
            "card, or export TORCH_DEVICE_BACKEND_AUTOLOAD=0 beside it to emulate on this machine."
        )
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        raise EmulatorError(
            "the emulated HPU needs torch 2.10 or newer, which can have a backend written in "
            f"Python, but torch {torch.__version__} is installed. On a machine without a card: "
            'pip install "torch>=2.10". On a Gaudi node keep its torch and use the card.'
        )
    name = torch._C._get_privateuse1_backend_name()
    if name not in ("privateuseone", "hpu"):
        raise EmulatorError(
            f"the emulated HPU needs PyTorch's slot for outside backends, but {name!r} has it. "
            "Use a Python process that does not load that backend."
        )


class _Finder:
    """Finds ``habana_frameworks`` and its modules in the folder of that name beside this file."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _PACKAGE and not fullname.startswith(_PACKAGE + "."):
            return None
        place = _FOLDER.joinpath(*fullname.split("."))
        if (place / "__init__.py").is_file():
            return importlib.util.spec_from_file_location(
                fullname, place / "__init__.py", submodule_search_locations=[str(place)]
            )
        file = place.with_suffix(".py")
        if file.is_file():
            return importlib.util.spec_from_file_location(fullname, file)
        # An import is told why; `importlib.util.find_spec` only asks, and None is the answer.
        if sys._getframe(2).f_code.co_name == "_find_and_load_unlocked":
            raise ModuleNotFoundError(
                f"the emulated HPU has no module {fullname}. If the Gaudi software has it, the "
                "emulator lacks it: see lightning_gaudi/emulator/README.md.",
                name=fullname,
            )
        return None
