"""A clear error for names of the Gaudi software that the emulator does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def name_missing(module: str) -> Callable[[str], Any]:
    """A module-level ``__getattr__`` that names what is missing.

    It raises AttributeError, so ``hasattr`` and ``from ... import`` behave as for any module.
    """

    def __getattr__(name: str) -> Any:
        raise AttributeError(
            f"the emulated HPU has no {module}.{name}. If the Gaudi software has it, the emulator "
            "lacks it: see lightning_gaudi/emulator/README.md."
        )

    return __getattr__
