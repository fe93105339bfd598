"""``lightning-gaudi run SCRIPT``: start a script in an execution mode."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_gaudi.cli.command import Command, add_mode
from lightning_gaudi.cli.parser import Parser
from lightning_gaudi.runtime.process import start_python


def add_script(parser: Parser) -> None:
    """Add the script and its own arguments, which are the rest of the line."""
    parser.add_argument(
        "-m", dest="is_module", action="store_true", help="SCRIPT is a module, as for python -m"
    )
    parser.add_argument("script", metavar="SCRIPT", help="the script's path")
    parser.add_argument(
        "arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="the script's own arguments"
    )


def check_script(given: argparse.Namespace, parser: Parser) -> None:
    """End the process with code 2 where there is no such script."""
    if not given.is_module and not Path(given.script).exists():
        parser.error(f"there is no script {given.script!r} in {Path.cwd()}")


def _add_arguments(parser: Parser) -> None:
    add_mode(parser)
    add_script(parser)


def _run(given: argparse.Namespace, parser: Parser) -> None:
    check_script(given, parser)
    script = ["-m", given.script] if given.is_module else [given.script]
    start_python([*script, *given.arguments], lazy=(given.mode or "lazy") == "lazy")


RUN = Command(
    name="run",
    group="run",
    summary="start a Python script in an execution mode",
    description=(
        "Start Python anew with the execution mode set before anything is imported, and run a\n"
        "script in it. Options stand before SCRIPT; what follows it is the script's own."
    ),
    examples=(
        "lightning-gaudi run train.py --epochs 3",
        "lightning-gaudi run --mode eager -m my_package.train",
    ),
    exit_codes=(("N", "the script's own"),),
    add_arguments=_add_arguments,
    run=_run,
)
