"""``lightning-gaudi``: scripts and LightningCLI in the right mode."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NoReturn

import pytest

from lightning_gaudi.cli import main
from lightning_gaudi.runtime import environment as environment_module
from lightning_gaudi.runtime import loading

cli = importlib.import_module("lightning_gaudi.cli.main")
run_command = importlib.import_module("lightning_gaudi.cli.run")
trainer_commands = importlib.import_module("lightning_gaudi.cli.trainer")

COMMAND = [sys.executable, "-W", "ignore", "-m", "lightning_gaudi_autoload.command"]


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment without the mode, with changes; None removes a variable."""
    merged = dict(os.environ) | {"PT_HPU_LAZY_MODE": None} | changes
    return {name: value for name, value in merged.items() if value is not None}


# --- what is parsed, without starting anything --------------------------------------------------


class Started(Exception):
    """Stands in for the start of another Python."""


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would be started: (arguments, whether lazy), or the arguments of LightningCLI."""
    seen: list[Any] = []

    def start_python(arguments: list[str], *, lazy: bool) -> NoReturn:
        seen.append((arguments, "lazy" if lazy else "eager"))
        raise Started

    def run_trainer(program: str, arguments: list[str], *, is_lazy: bool) -> NoReturn:
        seen.append((program, arguments, "lazy" if is_lazy else "eager"))
        raise Started

    for module in (cli, run_command, trainer_commands):
        monkeypatch.setattr(module, "start_python", start_python)
    monkeypatch.setattr(trainer_commands, "run_trainer", run_trainer)
    return seen


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        (["run"], "lazy"),
        (["run", "--mode", "lazy"], "lazy"),
        (["run", "--mode", "eager"], "eager"),
        (["--mode", "eager", "run"], "eager"),
        (["--mode", "eager", "run", "--mode", "lazy"], "lazy"),
    ],
)
def test_run_leaves_the_scripts_arguments_alone(
    starts: list[Any], tmp_path: Path, options: list[str], mode: str
) -> None:
    script = tmp_path / "train.py"
    script.touch()
    own = ["--mode", "fast", "-h", "--", "--lr=1", "fit"]
    with pytest.raises(Started):
        main([*options, str(script), *own])
    assert starts == [([str(script), *own], mode)]


@pytest.mark.parametrize(
    ("exported", "option", "mode"),
    [
        (None, None, "lazy"),
        (None, "lazy", "lazy"),
        (None, "eager", "eager"),
        ("1", "eager", "eager"),
        ("0", "lazy", "lazy"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_trainer_commands_start_anew_in_the_mode(
    starts: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    exported: str | None,
    option: str | None,
    mode: str,
) -> None:
    monkeypatch.setattr(environment_module, "lazy_mode", lambda: exported)
    with pytest.raises(Started):
        main([*(["--mode", option] if option else []), command, "--config", "c.yaml", "--help"])
    with pytest.raises(Started):
        main([command, "--config", "c.yaml", *(["--mode", option] if option else []), "--help"])
    expected = ["-m", "lightning_gaudi.cli", command, "--config", "c.yaml", "--help"]
    assert starts == [(expected, mode)] * 2


@pytest.mark.parametrize(
    ("exported", "option", "mode"),
    [("1", None, "lazy"), ("1", "lazy", "lazy"), ("0", None, "eager"), ("0", "eager", "eager")],
)
def test_trainer_commands_go_on_where_the_mode_is_set(
    starts: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    exported: str,
    option: str | None,
    mode: str,
) -> None:
    monkeypatch.setattr(environment_module, "lazy_mode", lambda: exported)
    with pytest.raises(Started):
        main([*(["--mode", option] if option else []), "fit", "--config", "c.yaml"])
    arguments = ["fit", "--config", "c.yaml"]
    assert starts == [("lightning-gaudi", arguments, mode)]


def test_a_wrong_mode_names_the_command_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-gaudi", "fit", "--config", "my net.yaml"])
    with pytest.raises(
        RuntimeError, match=r"lightning-gaudi --mode eager fit --config 'my net\.yaml'$"
    ):
        loading.check_mode("eager")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.py"], "error: there is no script 'nowhere.py' in "),
        (["run"], "error: the following arguments are required: SCRIPT"),
        (["run", "--mode", "graph", "x.py"], "argument --mode: invalid choice: 'graph'"),
        (["run", "--fast", "x.py"], "error: unrecognized arguments: --fast"),
        (["run", "--mod", "lazy", "x.py"], "arguments: --mod\nDid you mean --mode?\n"),
        (["plan", "--batchsize=3"], "error: the following arguments are required: DATA"),
        (
            ["trian"],
            "error: there is no command 'trian'. Did you mean 'fit'?\nThe commands are: run, ",
        ),
        (["xyzzy"], "error: there is no command 'xyzzy'.\nThe commands are: run, emulate, "),
        (["train"], "error: there is no command 'train'. Did you mean 'fit'?\n"),
        (["predct"], "error: there is no command 'predct'. Did you mean 'predict'?\n"),
    ],
)
def test_bad_command_lines(
    starts: list[Any],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert starts == []


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for command in (command.name for command in cli.COMMANDS):
        assert re.search(rf"^    {command} +\w", text, re.MULTILINE), command
    assert "--mode {lazy,eager}" in text
    assert re.search(r"^    3    emulate: more compilations", text, re.MULTILINE)
    assert max(len(line) for line in text.splitlines()) <= 100

    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert capsys.readouterr().out == text


def test_without_jsonargparse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", "c.yaml"])
    assert caught.value.code == 2
    assert (
        "lightning-gaudi fit: error: lightning-gaudi fit needs jsonargparse, which is not "
        "installed: "
        'pip install "lightning-gaudi[cli]"\n'
    ) in capsys.readouterr().err


# --- for real -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_starts_the_script_in_the_mode(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "print(os.environ['PT_HPU_LAZY_MODE'], sys.argv[1:], sys.path[0], os.getpid())\n"
        "sys.exit(7)\n"
    )
    process = subprocess.Popen(
        [*COMMAND, "run", "--mode", "eager", str(script), "--mode", "x"],
        env=environment(PT_HPU_LAZY_MODE="1"),
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(timeout=120)
    # The same process, so that signals reach the script.
    assert output == f"0 ['--mode', 'x'] {tmp_path} {process.pid}\n"
    assert process.returncode == 7


MODULE = """
import lightning as L
import torch


class Net(L.LightningModule):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, width)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def on_train_end(self):
        strategy = self.trainer.strategy
        print("trained", self.layer.out_features, self.layer.weight.device, strategy.mode)
        print("by", type(strategy).__name__, type(self.trainer.precision_plugin).__name__)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 4)), 2)
"""
CONFIG = """
seed_everything: 1
trainer:
  accelerator: hpu
  {strategy}
  precision: bf16-mixed
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
{model}
"""
BY_CLASS_PATH = "strategy: {class_path: lightning_gaudi.GaudiStrategy}"
NAMED_MODEL = """
model: {class_path: net.Net, init_args: {width: 3}}
data: {class_path: net.Data}
"""


def run_cli(
    folder: Path, command: list[str], config: str, **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder that holds ``net.py`` and ``net.yaml``."""
    (folder / "net.py").write_text(MODULE)
    (folder / "net.yaml").write_text(textwrap.dedent(config))
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_fit_from_yaml_starts_in_lazy_mode(tmp_path: Path) -> None:
    config = CONFIG.format(strategy="strategy: gaudi", model=NAMED_MODEL)
    result = run_cli(tmp_path, [*COMMAND, "fit", "--config", "net.yaml"], config)
    assert result.returncode == 0, result.stderr
    assert "trained 3 hpu:0 lazy\nby GaudiStrategy HPUPrecision\n" in result.stdout


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between LightningCLI and jsonargparse
@pytest.mark.parametrize("strategy", ["strategy: gaudi", "strategy: auto", BY_CLASS_PATH])
def test_fit_from_yaml_in_this_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    strategy: str,
) -> None:
    (tmp_path / "net.py").write_text(MODULE)
    (tmp_path / "net.yaml").write_text(CONFIG.format(strategy=strategy, model=NAMED_MODEL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.delitem(sys.modules, "net", raising=False)
    try:
        main(["fit", "--config", "net.yaml"])
    finally:
        sys.modules.pop("net", None)
    out = capsys.readouterr().out
    assert "trained 3 hpu:0 lazy\nby GaudiStrategy HPUPrecision\n" in out


@pytest.mark.slow
def test_fit_in_eager_mode_on_the_hpu_by_default(tmp_path: Path) -> None:
    config = NAMED_MODEL + "trainer: {fast_dev_run: true}"
    command = [*COMMAND, "--mode", "eager", "fit", "--config", "net.yaml"]
    result = run_cli(tmp_path, command, config)
    assert result.returncode == 0, result.stderr
    assert "trained 3 hpu:0 eager\nby GaudiStrategy HPUPrecision\n" in result.stdout


@pytest.mark.slow
def test_a_users_own_lightning_cli(tmp_path: Path) -> None:
    """`class_path` imports the package while parsing; the mode was not exported."""
    (tmp_path / "train.py").write_text(
        "from lightning.pytorch.cli import LightningCLI\n"
        "from net import Data, Net\n"
        "if __name__ == '__main__':\n"
        "    LightningCLI(Net, Data)\n"
    )
    config = CONFIG.format(strategy=BY_CLASS_PATH, model="model: {width: 5}")
    command = [sys.executable, "-W", "ignore", "train.py", "fit", "--config", "net.yaml"]
    result = run_cli(tmp_path, command, config)
    assert result.returncode == 0, result.stderr
    assert "trained 5 hpu:0 lazy\nby GaudiStrategy HPUPrecision\n" in result.stdout


def test_fit_help_is_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: lightning-gaudi ")
    assert "--trainer.accelerator" in text
    assert "--config" in text
