"""What a command of ``lightning-gaudi`` is.

The modules of the commands are imported in every call, so they import nothing heavy by themselves:
neither torch nor Lightning.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from lightning_gaudi.cli.parser import Parser

GROUPS = ("run", "train from a YAML config", "look ahead", "check", "shell")
"""The groups of commands, in the order of the help."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command.

    Attributes:
        name: What the user types.
        group: Under which heading the help has it; one of `GROUPS`.
        summary: Half a line of help.
        description: What its own help says.
        examples: Command lines that its own help shows.
        exit_codes: What its exit codes mean, where they are not 0 and 2 only.
        add_arguments: Adds its arguments to its parser.
        run: Runs it with what was parsed; an exit code, or None for 0.
        has_own_help: Whether ``--help`` and unknown options are left to what it runs.
        needs_package: Whether it runs in a Python that has imported all of `lightning_gaudi`.
    """

    name: str
    group: str
    summary: str
    description: str
    add_arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace, Parser], int | None]
    examples: tuple[str, ...] = ()
    exit_codes: tuple[tuple[str, str], ...] = ()
    has_own_help: bool = False
    needs_package: bool = False


def add_mode(parser: Parser, default: str | None = argparse.SUPPRESS) -> None:
    """Add ``--mode``, which may stand before or after the command.

    Args:
        parser: Of the program or of a command.
        default: None for the program; suppressed for a command, so that a value from before stays.
    """
    parser.add_argument(
        "--mode",
        choices=("lazy", "eager"),
        default=default,
        help="lazy (the default) gathers ops into graphs; eager runs op by op",
    )
