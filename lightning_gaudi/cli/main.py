"""``lightning-gaudi``: reads the command line and hands it to the command.

The mode must be in the environment before ``import torch`` (see `runtime.loading`), so commands
that use the device start Python anew with the mode set. The console script comes here without
having imported torch or Lightning (`lightning_gaudi_autoload.command`); so do its commands, which
therefore import nothing heavy at the top.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning_gaudi.cli.command import GROUPS, Command, add_mode
from lightning_gaudi.cli.completion import COMPLETION
from lightning_gaudi.cli.doctor import DOCTOR
from lightning_gaudi.cli.emulate import EMULATE
from lightning_gaudi.cli.parser import Parser
from lightning_gaudi.cli.plan import PLAN
from lightning_gaudi.cli.run import RUN
from lightning_gaudi.cli.selftest import SELFTEST
from lightning_gaudi.cli.trainer import TRAINER_COMMANDS
from lightning_gaudi.runtime import environment
from lightning_gaudi.runtime.process import start_python

PROGRAM = "lightning-gaudi"
COMMANDS: tuple[Command, ...] = (
    RUN,
    EMULATE,
    *TRAINER_COMMANDS,
    PLAN,
    DOCTOR,
    SELFTEST,
    COMPLETION,
)

_OTHER_NAMES = {"train": "fit", "evaluate": "validate", "inference": "predict", "check": "doctor"}
_EXIT_CODES = (
    ("0", "it worked"),
    ("1", "a check failed: a fault that doctor found, a check of selftest"),
    ("2", "the command line is wrong"),
    ("3", "emulate: more compilations or host reads than allowed"),
    ("N", "run and emulate: the script's own"),
)
_EXAMPLES = (
    ("lightning-gaudi doctor", "is this machine ready?"),
    ("lightning-gaudi run train.py", "a script in lazy mode"),
    ("lightning-gaudi emulate train.py", "without a card; ends with what would recompile"),
    ("lightning-gaudi fit --config config.yaml", "LightningCLI"),
)


def main(arguments: Sequence[str] | None = None, *, is_light: bool = False) -> None:
    """Run the console script.

    Args:
        arguments: The command line without the program's name; that of the process by default.
        is_light: Whether this process has left out what `lightning_gaudi` imports, so that
            commands that need it start another one.

    Raises:
        SystemExit: With code 2 where the command line is wrong, else with the command's code.
    """
    line = list(sys.argv[1:] if arguments is None else arguments)
    parser, parsers = build_parser()
    given, others = parser.parse_known_args(line)
    if given.command is None:
        parser.print_help()
        raise SystemExit(2)
    command = next(command for command in COMMANDS if command.name == given.command)
    own_parser = parsers[command.name]
    if others and not command.has_own_help:
        own_parser.refuse(others)
    given.others, given.is_light = others, is_light
    if is_light and command.needs_package:
        start_python(["-m", "lightning_gaudi.cli", *line], lazy=environment.lazy_mode() != "0")
    code = command.run(given, own_parser)
    if code:
        raise SystemExit(code)


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The program's parser, and those of its commands by name."""
    parser = Parser(prog=PROGRAM)
    add_mode(parser, None)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    parsers: dict[str, Parser] = {}
    for command in COMMANDS:
        own = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            epilog=_epilog(command),
            add_help=not command.has_own_help,
        )
        command.add_arguments(own)
        parsers[command.name] = own
    parser.known_commands = tuple(parsers)
    parser.other_names = _OTHER_NAMES
    parser.page = _page()
    return parser, parsers


def _page() -> str:
    """The program's help."""
    lines = [
        f"usage: {PROGRAM} [-h] [--mode {{lazy,eager}}] COMMAND ...",
        "",
        "Run PyTorch Lightning on Intel Gaudi, in the execution mode you choose.",
    ]
    for group in GROUPS:
        rows = [(c.name, c.summary) for c in COMMANDS if c.group == group]
        lines += ["", f"{group}:", *_aligned(rows, 12)] if rows else []
    options = [
        ("-h, --help", "show this message and exit"),
        ("--mode {lazy,eager}", "lazy (the default) gathers ops into graphs; eager runs op by op"),
    ]
    lines += ["", "options:", *_aligned(options, 21)]
    lines += ["", "exit codes:", *_aligned(_EXIT_CODES, 4)]
    lines += ["", "examples:", *_aligned(_EXAMPLES, 42)]
    lines += [
        "",
        "Without a card, use `emulate`, or export LIGHTNING_GAUDI_EMULATOR=1 for the emulated HPU.",
        f"`{PROGRAM} COMMAND --help` says more.",
    ]
    return "\n".join(lines) + "\n"


def _epilog(command: Command) -> str:
    lines: list[str] = []
    if command.exit_codes:
        lines += ["exit codes:", *_aligned(command.exit_codes, 4)]
    if command.examples:
        lines += ["", "examples:"] if lines else ["examples:"]
        lines += [f"    {example}" for example in command.examples]
    return "\n".join(lines)


def _aligned(rows: Sequence[tuple[str, str]], width: int) -> list[str]:
    return [f"    {name:<{width}} {text}" for name, text in rows]
