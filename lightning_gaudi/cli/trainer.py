"""``lightning-gaudi fit``, ``validate``, ``test`` and ``predict``: LightningCLI on the HPU."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.cli import LightningCLI

TRAINER_COMMANDS = {
    "fit": "train a model from a YAML config (LightningCLI)",
    "validate": "validate a model from a YAML config",
    "test": "test a model from a YAML config",
    "predict": "predict with a model from a YAML config",
}
"""The commands and what their help says."""

_WITH_SHORT_NAMES = ("lightning_gaudi.modules", "lightning_gaudi.data", "lightning_gaudi.callbacks")


def run_trainer(program: str, arguments: Sequence[str], *, is_lazy: bool) -> None:
    """Run LightningCLI on the process's command line, with the HPU as the default accelerator.

    Modules in the working directory can be named in ``class_path``, as with ``python -m``.

    Args:
        program: The name for help and errors.
        arguments: The command and what follows it.
        is_lazy: Whether the process is in lazy mode; chooses the default strategy.

    Raises:
        ModuleNotFoundError: LightningCLI's own dependencies are missing.
    """
    if importlib.util.find_spec("jsonargparse") is None:
        raise ModuleNotFoundError(
            f"{program} {arguments[0]} needs jsonargparse, which is not installed: "
            'pip install "lightning-gaudi[cli]"',
            name="jsonargparse",
        )
    sys.argv = [program, *arguments]
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    # Once imported, their classes can be named without their module: class_path: TransformersModule
    for name in _WITH_SHORT_NAMES:
        importlib.import_module(name)
    # In lazy mode "hpu" alone chooses GaudiStrategy, and accelerator=cpu in a config still works.
    defaults = {"accelerator": "hpu", "strategy": "auto" if is_lazy else "gaudi_eager"}
    LightningCLI(
        trainer_defaults=defaults,
        # Without a logger all runs of a config keep it in one place; the second must not fail.
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": program, "description": "PyTorch Lightning on Intel Gaudi."},
    )
