"""Environment variables of the Gaudi software and of the emulator: read and written here only."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_gaudi.errors import ConfigurationError

LAZY_MODE = "PT_HPU_LAZY_MODE"
EMULATOR = "LIGHTNING_GAUDI_EMULATOR"
RECIPE_CACHE = "PT_HPU_RECIPE_CACHE_CONFIG"
VISIBLE_MODULES = "HABANA_VISIBLE_MODULES"
MODULE_ID = "HLS_MODULE_ID"
LAZY_COLLECTIVES = "PT_HPU_ENABLE_LAZY_COLLECTIVES"

_RECIPE_CACHE_SIZE_MB = 8192


def is_emulator_requested() -> bool:
    """Whether ``LIGHTNING_GAUDI_EMULATOR`` asks for the emulated HPU.

    Raises:
        ConfigurationError: It is neither 0 nor 1.
    """
    value = os.environ.get(EMULATOR, "0")
    if value not in ("", "0", "1"):
        raise ConfigurationError(
            f"{EMULATOR} must be 1 (emulate the HPU) or 0, but it is {value!r}."
        )
    return value == "1"


def lazy_mode() -> str | None:
    """``PT_HPU_LAZY_MODE`` as it stands, or None."""
    return os.environ.get(LAZY_MODE)


def set_lazy_mode(value: str) -> None:
    """Set ``PT_HPU_LAZY_MODE`` for this process and those it starts."""
    os.environ[LAZY_MODE] = value


def has_lazy_collectives() -> bool:
    """Whether ``PT_HPU_ENABLE_LAZY_COLLECTIVES`` puts collectives into HPU graphs."""
    return os.environ.get(LAZY_COLLECTIVES, "").lower() in ("1", "true")


def visible_modules() -> list[str] | None:
    """The cards that ``HABANA_VISIBLE_MODULES`` leaves visible; None where it is not set."""
    value = os.environ.get(VISIBLE_MODULES)
    if value is None or value in ("", "all"):
        return None
    return [module for module in value.split(",") if module]


def recipe_cache() -> str | None:
    """``PT_HPU_RECIPE_CACHE_CONFIG`` as it stands, or None."""
    return os.environ.get(RECIPE_CACHE)


def recipe_cache_value(directory: Path) -> str:
    """The setting that keeps compiled recipes in a directory.

    It is "path,delete at start,size in MB" (docs.habana.ai, "Runtime Environment Variables").
    """
    return f"{directory},false,{_RECIPE_CACHE_SIZE_MB}"


def set_recipe_cache(value: str) -> None:
    """Set ``PT_HPU_RECIPE_CACHE_CONFIG`` for this process and those it starts."""
    os.environ[RECIPE_CACHE] = value


def set_module_id(value: str) -> None:
    """Set ``HLS_MODULE_ID``: which card this process takes."""
    os.environ[MODULE_ID] = value
