"""``lightning-gaudi fit``, ``validate``, ``test`` and ``predict``: LightningCLI on the HPU."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_gaudi.cli.command import Command, add_mode
from lightning_gaudi.cli.parser import Parser
from lightning_gaudi.runtime import environment
from lightning_gaudi.runtime.process import start_python

_SUMMARIES = {
    "fit": "train a model from a YAML config (LightningCLI)",
    "validate": "validate a model from a YAML config",
    "test": "test a model from a YAML config",
    "predict": "predict with a model from a YAML config",
}

_WITH_SHORT_NAMES = (
    "lightning_gaudi.modules",
    "lightning_gaudi.data",
    "lightning_gaudi.callbacks",
    "lightning_gaudi.profiler",
)


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
    from lightning.pytorch.cli import LightningCLI

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


def _run(given: argparse.Namespace, parser: Parser) -> None:
    """Start LightningCLI in the mode that is asked for, in this Python if it is in that mode."""
    wanted = environment.lazy_mode()
    if given.mode is not None:
        wanted = "1" if given.mode == "lazy" else "0"
    if given.is_light or wanted is None or wanted != environment.lazy_mode():
        again = ["-m", "lightning_gaudi.cli", given.command, *given.others]
        start_python(again, lazy=wanted != "0")
    try:
        run_trainer("lightning-gaudi", [given.command, *given.others], is_lazy=wanted == "1")
    except ModuleNotFoundError as error:
        if error.name != "jsonargparse":
            raise
        parser.error(str(error))


TRAINER_COMMANDS = tuple(
    Command(
        name=name,
        group="train from a YAML config",
        summary=summary,
        description="",
        # What these do not know, --help included, is LightningCLI's.
        add_arguments=add_mode,
        run=_run,
        has_own_help=True,
    )
    for name, summary in _SUMMARIES.items()
)
