"""An argument parser that remembers its options, and suggests what was meant.

What it remembers is what shell completion needs; argparse itself has no public list of it.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

_INVALID_CHOICE = re.compile(r"argument COMMAND: invalid choice: '([^']*)'")


class Parser(argparse.ArgumentParser):
    """Argparse's parser with suggestions; subparsers are of this class too.

    Attributes:
        actions: The arguments, in the order in which they were added.
        known_commands: The names of the subcommands, for suggestions.
        other_names: What people may call them elsewhere, with our names.
        page: The whole help, where it is not argparse's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.actions: list[argparse.Action] = []
        self.known_commands: tuple[str, ...] = ()
        self.other_names: dict[str, str] = {}
        self.page: str | None = None
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Add an argument, as argparse does, and remember it."""
        action = super().add_argument(*args, **kwargs)
        self.actions.append(action)
        return action

    @property
    def options(self) -> list[str]:
        """The options, such as ``"--mode"``."""
        return [name for action in self.actions for name in action.option_strings]

    def format_help(self) -> str:
        """The help: `page` where there is one."""
        return super().format_help() if self.page is None else self.page

    def refuse(self, others: Sequence[str]) -> NoReturn:
        """End the process because of arguments that nobody knows."""
        message = f"unrecognized arguments: {' '.join(others)}"
        option = next((text.split("=")[0] for text in others if text.startswith("-")), None)
        near = [] if option is None else difflib.get_close_matches(option, self.options, n=2)
        if near:
            message += f"\nDid you mean {' or '.join(near)}?"
        self.error(message)

    def error(self, message: str) -> NoReturn:
        """End the process with code 2; a command that is near to one that exists is named."""
        found = _INVALID_CHOICE.search(message)
        if found is not None and self.known_commands:
            names = (*self.known_commands, *self.other_names)
            near = difflib.get_close_matches(found[1], names, n=2, cutoff=0.6)
            near = list(dict.fromkeys(self.other_names.get(name, name) for name in near))
            message = f"there is no command {found[1]!r}."
            if near:
                message += f" Did you mean {' or '.join(map(repr, near))}?"
            message += f"\nThe commands are: {', '.join(self.known_commands)}."
        if not found:
            message += f"\n`{self.prog} --help` says more."
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {message}\n")
