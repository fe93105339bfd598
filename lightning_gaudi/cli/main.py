"""``lightning-gaudi``: start a script, or a LightningCLI, in the right execution mode.

The mode must be in the environment before ``import torch`` (see `runtime.loading`), so every
command starts Python anew with the mode set; ``fit`` and its sisters only where it is not set yet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_gaudi.cli.plan import PLAN_HELP, add_plan_arguments, run_plan
from lightning_gaudi.cli.trainer import TRAINER_COMMANDS, run_trainer
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import environment
from lightning_gaudi.runtime.process import start_python

PROGRAM = "lightning-gaudi"
_MODES = ("lazy", "eager")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the console script.

    Args:
        arguments: The command line without the program's name; that of the process by default.

    Raises:
        SystemExit: With code 2 where the command line is wrong, else with the command's code.
    """
    parser = _parser()
    given, others = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
    if given.command is None:
        parser.print_help()
        raise SystemExit(2)
    if given.command == "run":
        if others:
            parser.error(f"unrecognized arguments: {' '.join(others)}")
        if not Path(given.script).exists():
            parser.error(f"there is no script {given.script!r} in {Path.cwd()}")
        start_python([given.script, *given.arguments], lazy=(given.mode or "lazy") == "lazy")
    if given.command == "plan":
        if others:
            parser.error(f"unrecognized arguments: {' '.join(others)}")
        try:
            run_plan(given)
        except (ConfigurationError, OSError) as error:
            parser.exit(2, f"{PROGRAM} plan: {error}\n")
        return

    wanted = environment.lazy_mode()
    if given.mode is not None:
        wanted = "1" if given.mode == "lazy" else "0"
    if wanted is None or wanted != environment.lazy_mode():
        again = ["-m", "lightning_gaudi.cli", given.command, *others]
        start_python(again, lazy=wanted != "0")
    try:
        run_trainer(PROGRAM, [given.command, *others], is_lazy=wanted == "1")
    except ModuleNotFoundError as error:
        if error.name != "jsonargparse":
            raise
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Run PyTorch Lightning on Intel Gaudi, in the execution mode you choose.",
        epilog=(
            "Without a card, export LIGHTNING_GAUDI_EMULATOR=1 to use the emulated HPU. "
            f"`{PROGRAM} COMMAND --help` says more."
        ),
    )
    _add_mode(parser, None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run = commands.add_parser(
        "run",
        allow_abbrev=False,
        help="start a Python script in an execution mode",
        description=(
            "Start Python anew with the execution mode set before anything is imported, and run a "
            "script in it. The exit code is the script's."
        ),
    )
    # May stand before or after the command; suppressed here, a value from before stays.
    _add_mode(run, argparse.SUPPRESS)
    run.add_argument("script", metavar="SCRIPT", help="the script's path")
    run.add_argument(
        "arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="the script's own arguments"
    )
    plan = commands.add_parser(
        "plan",
        allow_abbrev=False,
        help=PLAN_HELP,
        description=(
            "Read the texts of a data set and say, for every number of buckets, how many graphs "
            "would be captured, how much of the work would be padding, and what the graphs' inputs "
            "would take. Needs no card and no model."
        ),
    )
    add_plan_arguments(plan)
    for name, text in TRAINER_COMMANDS.items():
        # What these do not know, --help included, is LightningCLI's.
        command = commands.add_parser(name, help=text, add_help=False, allow_abbrev=False)
        _add_mode(command, argparse.SUPPRESS)
    return parser


def _add_mode(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--mode",
        choices=_MODES,
        default=default,
        help="lazy (the default) gathers ops into graphs; eager runs op by op",
    )
