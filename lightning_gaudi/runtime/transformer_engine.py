"""The Gaudi software's Transformer Engine, which trains in 8 bits.

It is a package of its own (``intel_transformer_engine``); releases before that had it in the bridge
(``habana_frameworks.torch.hpex.experimental.transformer_engine``; docs.habana.ai, "FP8 Training
with Intel Gaudi Transformer Engine"). It is not Nvidia's ``transformer_engine``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_gaudi.errors import ConfigurationError

_PACKAGES = (
    "intel_transformer_engine",
    "habana_frameworks.torch.hpex.experimental.transformer_engine",
)


def require() -> None:
    """Check that there is a Transformer Engine for Gaudi. Loads nothing.

    Raises:
        ConfigurationError: It is not installed.
    """
    _package()


def load() -> Any:
    """The Transformer Engine, imported: a module with ``Linear`` and ``fp8_autocast``.

    It imports the Gaudi software, so the execution mode must stand.

    Raises:
        ConfigurationError: It is not installed.
    """
    return importlib.import_module(_package())


def make_recipe(settings: Mapping[str, Any]) -> Any:
    """A ``DelayedScaling`` recipe.

    Args:
        settings: Its fields. ``fp8_format`` may be a name, such as ``"HYBRID"``.

    Raises:
        ConfigurationError: The Transformer Engine is not installed, or refuses the settings.
    """
    recipes = importlib.import_module(f"{load().__name__}.recipe")
    fields = dict(settings)
    try:
        if isinstance(name := fields.get("fp8_format"), str):
            fields["fp8_format"] = recipes.Format[name]
        return recipes.DelayedScaling(**fields)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise ConfigurationError(
            "recipe must be a DelayedScaling recipe of the Transformer Engine, or its fields "
            f"(margin, interval, fp8_format, amax_history_len, ...), but {dict(settings)!r} is "
            f"refused: {error!r}"
        ) from error


def _package() -> str:
    """The name of the package, found without an import, which would fix the execution mode."""
    for name in _PACKAGES:
        top, *inner = name.split(".")
        spec = importlib.util.find_spec(top)
        folders = (spec.submodule_search_locations or ()) if spec is not None else ()
        if any(Path(folder).joinpath(*inner, "__init__.py").is_file() for folder in folders):
            return name
    raise ConfigurationError(
        "precision='fp8' needs Intel's Transformer Engine for Gaudi, but there is neither "
        f"{_PACKAGES[0]} nor {_PACKAGES[1]}. Install the wheel intel_transformer_engine of your "
        "release of the Gaudi software (it needs a Gaudi 2 or newer; the emulated HPU has none), "
        "or use precision='bf16-mixed', 'bf16-true', '16-mixed' or '32-true'."
    )
