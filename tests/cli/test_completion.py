"""Tab completion: what the shell offers after a line."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest

from lightning_gaudi.cli import main
from lightning_gaudi.cli.main import COMMANDS, build_parser

NAMES = [command.name for command in COMMANDS]


@pytest.fixture
def script(capsys):
    main(["completion", "bash"])
    return capsys.readouterr().out


def offered(script: str, line: str, folder) -> list[str]:
    """What bash offers for the last word of a line."""
    words = line.split(" ")
    code = f"""{script}
COMP_WORDS=({" ".join(shlex.quote(word) for word in words)})
COMP_CWORD={len(words) - 1}
_lightning_gaudi
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    result = subprocess.run(
        ["bash", "--norc", "--noprofile", "-eu", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lightning-gaudi ", NAMES),
        ("lightning-gaudi d", ["doctor"]),
        ("lightning-gaudi --m", ["--mode"]),
        ("lightning-gaudi --mode ", ["lazy", "eager"]),
        ("lightning-gaudi --mode eager ru", ["run"]),
        ("lightning-gaudi run --mode l", ["lazy"]),
        ("lightning-gaudi emulate --max", ["--max-compilations", "--max-host-reads"]),
        ("lightning-gaudi emulate --devices 2 --st", ["--strict"]),
        ("lightning-gaudi plan data.csv --tok", ["--tokenizer"]),
        ("lightning-gaudi fit --conf", ["--config"]),
        ("lightning-gaudi fit --mode eager --conf", ["--config"]),
        ("lightning-gaudi completion ", ["bash", "zsh", "fish"]),
        ("lightning-gaudi completion z", ["zsh"]),
        # Nothing, so that bash offers files:
        ("lightning-gaudi run ", []),
        ("lightning-gaudi emulate --report ", []),
        ("lightning-gaudi plan --plot ", []),
        # The script's own:
        ("lightning-gaudi run train.py --m", []),
        ("lightning-gaudi emulate --devices 2 train.py --st", []),
    ],
)
def test_what_bash_offers(script, tmp_path, line, expected):
    assert offered(script, line, tmp_path) == expected


def test_every_option_of_every_command_is_offered(script, tmp_path):
    parsers = build_parser()[1]
    for name in ("run", "emulate", "plan", "doctor", "selftest"):
        options = parsers[name].options
        assert "--help" in options
        assert offered(script, f"lightning-gaudi {name} -", tmp_path) == options


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_the_same_words(shell, capsys):
    main(["completion", shell])
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert command.name in text
    for option in ("max-compilations", "quick", "tokenizer", "no-load"):
        assert option in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True, timeout=60)


def test_fish_lines_name_command_option_and_values(capsys):
    main(["completion", "fish"])
    lines = capsys.readouterr().out.splitlines()
    seen = "complete -c lightning-gaudi -n '__fish_seen_subcommand_from run'"
    assert any(line.startswith(f"{seen} -l mode -x -a 'lazy eager' -d ") for line in lines)
    assert any("-n __fish_use_subcommand -a doctor -d 'look at software" in line for line in lines)


def test_an_unknown_shell(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["completion", "tcsh"])
    assert caught.value.code == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
