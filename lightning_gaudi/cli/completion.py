"""``lightning-gaudi completion SHELL``: a script that completes commands and options.

Generated from the parsers, so that it cannot know other options than they do.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_gaudi.cli.command import Command
from lightning_gaudi.cli.parser import Parser

SHELLS = ("bash", "zsh", "fish")
_NAME = "lightning-gaudi"


@dataclass(frozen=True, kw_only=True)
class _Words:
    """What can follow a command.

    Attributes:
        summary: Of the command.
        options: Its options, with what they do.
        choices: The values of options that have a few.
        valued: The options that take a value.
        arguments: What its first argument can be, where that is one of a few.
        ends_at_script: Whether what follows the first argument is a script's own.
    """

    summary: str
    options: dict[str, str]
    choices: dict[str, Sequence[str]]
    valued: Sequence[str]
    arguments: Sequence[str]
    ends_at_script: bool


def _words_of(parser: Parser, summary: str, *, has_own_help: bool) -> _Words:
    options: dict[str, str] = {}
    choices: dict[str, Sequence[str]] = {}
    valued: list[str] = []
    arguments: Sequence[str] = ()
    ends_at_script = False
    for action in parser.actions:
        if not action.option_strings:
            ends_at_script |= action.nargs == argparse.REMAINDER
            arguments = arguments or tuple(map(str, action.choices or ()))
        for name in action.option_strings:
            options[name] = (action.help or "").split(";")[0].replace("%(default)s", "")
            if action.nargs != 0:
                valued.append(name)
                if action.choices:
                    choices[name] = tuple(map(str, action.choices))
    if has_own_help:  # LightningCLI's, the most common ones
        options |= {
            "--config": "a YAML config",
            "--print_config": "print the config that results",
            "--help": "show the options",
        }
        valued.append("--config")
    return _Words(
        summary=summary,
        options=options,
        choices=choices,
        valued=valued,
        arguments=arguments,
        ends_at_script=ends_at_script,
    )


def completion_script(
    shell: str, parser: Parser, parsers: Mapping[str, Parser], commands: Sequence[Command]
) -> str:
    """The script for a shell.

    Args:
        shell: One of `SHELLS`.
        parser: The program's parser.
        parsers: Those of its commands, by name.
        commands: The commands.
    """
    top = _words_of(parser, "", has_own_help=False)
    words = {
        command.name: _words_of(
            parsers[command.name], command.summary, has_own_help=command.has_own_help
        )
        for command in commands
    }
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](top, words)


# In both shells: find the command, and whether its script is there already.
_FIND = """\
    local command="" script="" word
    local -i i
    for ((i = {first}; i < {end}; i++)); do
        word=${{words[i]}}
        case "$command:$word" in
            {valued}) ((i++)) ;;
            *:-*) ;;
            :*) command=$word ;;
            *) script=$word; break ;;
        esac
    done
"""


def _bash(top: _Words, words: Mapping[str, _Words]) -> str:
    return (
        f"# bash completion of {_NAME}: source <({_NAME} completion bash)\n"
        "_lightning_gaudi() {\n"
        '    local words=("${COMP_WORDS[@]}") current=${COMP_WORDS[COMP_CWORD]}\n'
        "    local previous=${COMP_WORDS[COMP_CWORD - 1]} found=\n"
        + _FIND.format(first=1, end="COMP_CWORD", valued=_valued(top, words))
        + _choose(top, words)
        # Words without spaces, and macOS's bash has no mapfile.
        + '    COMPREPLY=($(compgen -W "$found" -- "$current")) || :\n'
        "}\n"
        # Where nothing is found, files.
        f"complete -o bashdefault -o default -F _lightning_gaudi {_NAME}\n"
    )


def _zsh(top: _Words, words: Mapping[str, _Words]) -> str:
    return (
        f"#compdef {_NAME}\n# zsh completion of {_NAME}: source <({_NAME} completion zsh)\n"
        "_lightning_gaudi() {\n"
        "    local current=${words[CURRENT]} previous=${words[CURRENT - 1]} found=\n"
        + _FIND.format(first=2, end="CURRENT", valued=_valued(top, words))
        + _choose(top, words)
        + "    [[ -n $found ]] && compadd -- ${=found} || _files\n"
        "}\n"
        f"compdef _lightning_gaudi {_NAME}\n"
    )


def _choose(top: _Words, words: Mapping[str, _Words]) -> str:
    """The cases that set ``found``: by previous word, by command, by current word."""
    lines = ['    case "$command:$previous:$script:$current" in']
    for name, values in top.choices.items():
        lines.append(f'        :{name}::*) found="{" ".join(values)}" ;;')
    lines.append(f'        :*::-*) found="{" ".join(top.options)}" ;;')
    lines.append(f'        :*) found="{" ".join(words)}" ;;')
    for command, own in words.items():
        for name, values in own.choices.items():
            lines.append(f'        {command}:{name}::*) found="{" ".join(values)}" ;;')
        others = [name for name in own.valued if name not in own.choices]
        if others:
            lines.append(f"        {'|'.join(f'{command}:{name}::*' for name in others)}) ;;")
        # Behind its script stand a script's own options, which nobody here knows.
        script = "" if own.ends_at_script else "*"
        lines.append(f'        {command}:*:{script}:-*) found="{" ".join(own.options)}" ;;')
        if own.arguments:
            lines.append(f'        {command}:*::*) found="{" ".join(own.arguments)}" ;;')
    return "\n".join([*lines, "    esac", ""])


def _valued(top: _Words, words: Mapping[str, _Words]) -> str:
    """The pattern of options whose next word is their value."""
    patterns = [f":{name}" for name in top.valued]
    patterns += [f"{command}:{name}" for command, own in words.items() for name in own.valued]
    return "|".join(patterns)


def _fish(top: _Words, words: Mapping[str, _Words]) -> str:
    lines = [f"# fish completion of {_NAME}: {_NAME} completion fish | source"]
    lines += _fish_options("__fish_use_subcommand", top)
    for command, own in words.items():
        lines.append(
            f"complete -c {_NAME} -f -n __fish_use_subcommand -a {command} "
            f"-d {shlex.quote(own.summary)}"
        )
        seen = f"__fish_seen_subcommand_from {command}"
        lines += _fish_options(seen, own)
        if own.arguments:
            values = shlex.quote(" ".join(own.arguments))
            lines.append(f"complete -c {_NAME} -f -n {shlex.quote(seen)} -a {values}")
    return "\n".join(lines) + "\n"


def _fish_options(condition: str, own: _Words) -> list[str]:
    lines = []
    for name, text in own.options.items():
        kind = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
        line = f"complete -c {_NAME} -n {shlex.quote(condition)} {kind}"
        if name in own.choices:
            line += f" -x -a {shlex.quote(' '.join(own.choices[name]))}"
        elif name in own.valued:
            line += " -r"
        lines.append(f"{line} -d {shlex.quote(text)}" if text else line)
    return lines


def _add_arguments(parser: Parser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def _run(given: argparse.Namespace, parser: Parser) -> None:
    # Here, since it lists this command too.
    from lightning_gaudi.cli.main import COMMANDS, build_parser

    print(completion_script(given.shell, *build_parser(), COMMANDS), end="")


COMPLETION = Command(
    name="completion",
    group="shell",
    summary="print a script for tab completion in bash, zsh or fish",
    description="Print a script that completes commands, options and their values.",
    examples=(
        'echo "source <(lightning-gaudi completion bash)" >> ~/.bashrc',
        'echo "source <(lightning-gaudi completion zsh)" >> ~/.zshrc',
        "lightning-gaudi completion fish > ~/.config/fish/completions/lightning-gaudi.fish",
    ),
    add_arguments=_add_arguments,
    run=_run,
)
