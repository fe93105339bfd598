"""Find and load the Gaudi software, or the emulator in its place, in the right execution mode.

The mode is read from ``PT_HPU_LAZY_MODE`` once, when the software loads. From release 1.21 on that
happens inside ``import torch`` unless the variable is 1, and in eager mode (HABANA.md,
"Releases"). So where it is loaded already the mode can only be checked.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_gaudi import emulator
from lightning_gaudi.errors import (
    ConfigurationError,
    ExecutionModeError,
    GaudiNotAvailableError,
)
from lightning_gaudi.runtime import environment

ExecutionMode = Literal["lazy", "eager", "compile"]
EXECUTION_MODES: tuple[str, ...] = get_args(ExecutionMode)

_PACKAGE = "habana_frameworks"
_LAZY_VALUE = {"lazy": "1", "eager": "0", "compile": "0"}
_value_set_here: str | None = None
_opened_in: int | None = None
"""The process that has opened the device here: this one, or the one it was forked from."""

REMEDIES = (
    "On a Gaudi machine install the Gaudi software (docs.habana.ai, "
    '"Installation Guide"; check with hl-smi). On any other machine use the emulated HPU: '
    "export LIGHTNING_GAUDI_EMULATOR=1 before starting Python."
)


def install_emulator_if_requested() -> None:
    """Install the emulated HPU where ``LIGHTNING_GAUDI_EMULATOR=1``.

    Raises:
        GaudiNotAvailableError: It cannot be installed: the real software is loaded, or torch is
            too old.
    """
    if environment.is_emulator_requested():
        try:
            emulator.install()
        except emulator.EmulatorError as error:
            raise GaudiNotAvailableError(str(error)) from error


def is_emulated() -> bool:
    """Whether this process has the emulated HPU."""
    return emulator.is_installed()


def is_software_present() -> bool:
    """Whether the Gaudi software, or the emulator in its place, can be imported. Loads nothing."""
    return _PACKAGE in sys.modules or importlib.util.find_spec(_PACKAGE) is not None


def is_loaded() -> bool:
    """Whether the execution mode is fixed: the software is loaded, or the emulator was used."""
    return f"{_PACKAGE}.torch" in sys.modules or emulator.is_mode_fixed()


def check_mode(mode: str) -> None:
    """Check that the software is loaded in a mode, or still can be. Loads nothing.

    Args:
        mode: ``"lazy"``, ``"eager"`` or ``"compile"``.

    Raises:
        ConfigurationError: The mode is unknown.
        ExecutionModeError: The software is loaded in the other mode, or ``PT_HPU_LAZY_MODE`` asks
            for the other one.
    """
    if mode not in EXECUTION_MODES:
        raise ConfigurationError(
            f"mode must be one of {', '.join(map(repr, EXECUTION_MODES))}, but it is {mode!r}."
        )
    wanted = _LAZY_VALUE[mode]
    if is_loaded():
        if is_lazy() != (wanted == "1"):
            raise _mode_error(mode, f"the Gaudi software is loaded already, {_found_mode()}")
    elif environment.lazy_mode() not in (None, wanted, _value_set_here):
        raise _mode_error(mode, f"{environment.LAZY_MODE}={environment.lazy_mode()!r} is set")


def prepare(mode: str) -> None:
    """Make sure that the software, whoever loads it, will load in a mode. Loads nothing.

    Sets ``PT_HPU_LAZY_MODE`` for this process where the user has not.

    Raises:
        ConfigurationError: The mode is unknown.
        ExecutionModeError: The software is loaded in the other mode, or ``PT_HPU_LAZY_MODE`` asks
            for the other one.
    """
    global _value_set_here
    check_mode(mode)
    wanted = _LAZY_VALUE[mode]
    # What the user has set stays the user's, and a later strategy may not overrule it either.
    if not is_loaded() and environment.lazy_mode() != wanted:
        _value_set_here = wanted
        environment.set_lazy_mode(wanted)


def load(mode: str) -> None:
    """Load the Gaudi software in a mode; nothing to do where it is loaded in that mode.

    Raises:
        GaudiNotAvailableError: It cannot be imported.
        ConfigurationError: The mode is unknown.
        ExecutionModeError: It is loaded in the other mode.
    """
    prepare(mode)
    require_software()
    module("torch")
    module("torch.core")
    # A release that decides the mode by more than the variable must not go unnoticed.
    if is_lazy() != (mode == "lazy"):
        raise _mode_error(mode, f"the Gaudi software came up {_found_mode()}")
    # Gradient checkpointing keeps the device's random state only where this has been called: it
    # reads `torch.hpu._initialized`, which tensors on the device do not set (hpu/__init__.py).
    module("torch.hpu").init()
    global _opened_in
    _opened_in = os.getpid()


def check_not_inherited() -> None:
    """Check that this process was not forked from one that has opened the device.

    Raises:
        ConfigurationError: It was; the device cannot be used in both.
    """
    if _opened_in not in (None, os.getpid()):
        raise ConfigurationError(
            f"start_method='fork' cannot be used here: process {_opened_in}, which this one was "
            "forked from, has the HPU open from an earlier run. Restart Python (in a notebook, the "
            "kernel) and make this run the first, or put the code into a script and leave "
            "start_method out."
        )


def require_software() -> None:
    """Check that there is Gaudi software.

    Raises:
        GaudiNotAvailableError: There is none.
    """
    if not is_software_present():
        raise GaudiNotAvailableError(
            "no HPU: the Gaudi software (habana_frameworks) is not installed in "
            f"{sys.executable}, and the emulated HPU was not asked for. {REMEDIES}"
        )


def is_lazy() -> bool:
    """Whether the loaded software runs in lazy mode."""
    return bool(module("torch.utils.internal").is_lazy())


def module(name: str) -> Any:
    """A module of the Gaudi software, imported: ``module("torch.core")``."""
    return importlib.import_module(f"{_PACKAGE}.{name}")


def set_recipe_cache(directory: str | Path) -> None:
    """Keep compiled recipes in a directory between runs; to be called before `load`.

    Raises:
        ExecutionModeError: The software is loaded, so that it has read its settings already, and
            they were others.
    """
    value = environment.recipe_cache_value(Path(directory).absolute())
    if environment.recipe_cache() == value:
        return
    if is_loaded():
        raise ExecutionModeError(
            "recipe_cache_dir must be set before the Gaudi software loads, but it is loaded. "
            "Export it instead, before Python starts:\n"
            f"    export {environment.RECIPE_CACHE}={shlex.quote(value)}"
        )
    environment.set_recipe_cache(value)


def _found_mode() -> str:
    return "in lazy mode" if is_lazy() else "in eager mode"


def _mode_error(mode: str, found: str) -> ExecutionModeError:
    return ExecutionModeError(
        f"mode={mode!r} needs {environment.LAZY_MODE}={_LAZY_VALUE[mode]}, but {found}. "
        "The mode is fixed when the Gaudi software loads, which recent releases do inside "
        "`import torch`; it cannot change in this process. To "
        f"go on in it: GaudiStrategy(mode={'eager' if mode == 'lazy' else 'lazy'!r}). "
        "Else start Python anew with\n"
        f"    export {environment.LAZY_MODE}={_LAZY_VALUE[mode]}\n"
        "or let this do it:\n"
        f"    {_command(mode)}"
    )


def _command(mode: str) -> str:
    """The command that starts this program in a mode."""
    program, *arguments = sys.argv or [""]
    option = "lazy" if mode == "lazy" else "eager"
    if Path(program).name == "lightning-gaudi":
        return shlex.join(["lightning-gaudi", "--mode", option, *arguments])
    script = shlex.join([program, *arguments]) if program.endswith(".py") else "SCRIPT"
    return f"lightning-gaudi run {'' if option == 'lazy' else '--mode eager '}{script}"
