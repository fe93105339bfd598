"""``lightning-gaudi emulate``: scripts as people write them, and what the report says of them."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import pytest

from lightning_gaudi.cli import emulating, main, script_monitor
from lightning_gaudi.runtime import emulation

emulate_command = importlib.import_module("lightning_gaudi.cli.emulate")

# In the manner of Lightning's own introduction; 42 rows in batches of 4 end with one of 2.
AUTOENCODER = """
import lightning as L
import torch
from torch import nn, utils

encoder = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
decoder = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 16))


class LitAutoEncoder(L.LightningModule):
    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def training_step(self, batch, batch_idx):
        x, _ = batch
        x = x.view(x.size(0), -1)
        z = self.encoder(x)
        x_hat = self.decoder(z)
        loss = nn.functional.mse_loss(x_hat, x)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


dataset = utils.data.TensorDataset(torch.rand(42, 4, 4), torch.arange(42))
train_loader = utils.data.DataLoader(dataset, batch_size=4)
autoencoder = LitAutoEncoder(encoder, decoder)
trainer = L.Trainer(max_epochs=1, **QUIET)
trainer.fit(model=autoencoder, train_dataloaders=train_loader)
print("trained on", trainer.strategy.root_device)
"""
QUIET = """
QUIET = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""
PLAIN = """
import sys
import torch
import habana_frameworks.torch.core as htcore
net = torch.nn.Linear(8, 1).to("hpu")
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
data = torch.utils.data.DataLoader(torch.rand(42, 8), batch_size=4)
for epoch in range(2):
    for batch in data:
        loss = net(batch.to("hpu")).square().mean()
        loss.backward()
        htcore.mark_step()
        optimizer.step()
        optimizer.zero_grad()
        htcore.mark_step()
print("loss", loss.item() > 0, __name__, sys.argv[1:], net.weight.device)
"""

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a script in this process, as the process that emulate starts does; its exit code."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setattr(script_monitor, "_watch", None)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)

    def start(code: str, *arguments: str, is_module: bool = False, **options: Any) -> int:
        (tmp_path / "script.py").write_text(textwrap.dedent(code))
        told = emulation.Emulation(process_id=os.getpid(), **options)
        monkeypatch.setenv(emulation.EMULATE, json.dumps(asdict(told)))
        script = ["-m", "script"] if is_module else ["script.py"]
        return emulating.main([*script, *arguments])

    return start


def line_of(code: str, text: str) -> int:
    return next(n for n, line in enumerate(code.splitlines(), 1) if text in line)


def test_a_stock_lightning_script_runs_on_the_hpu_and_its_last_batch_is_named(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = QUIET + AUTOENCODER
    assert run(code, report=str(tmp_path / "report")) == 0
    out = capsys.readouterr().out
    assert "trained on hpu:0\n" in out
    view = line_of(code, "x.view")
    assert f"script.py:{view}  view" in out
    assert "[2, 4, 4]:float32, before [4, 4, 4]:float32" in out
    facts = json.loads((tmp_path / "report" / "compile_monitor.json").read_text())
    assert facts["stages"]["fit"]["steps"] == 11
    assert facts["after_warmup"]["compilations"] == 1
    late = [f for f in facts["findings"] if f["kind"] == "compilation" and f["after_warmup"]]
    assert [(f["place"], f["reason"]) for f in late] == [(f"script.py:{view}", "shapes")]
    assert (facts["device"], facts["mode"], facts["stopped_by"]) == (
        "GAUDI2 (emulated)",
        "lazy",
        None,
    )
    assert (tmp_path / "report" / "compile_monitor.html").is_file()


def test_a_plain_loop_is_watched_mark_by_mark(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(PLAIN, "--lr", "1") == 0
    out = capsys.readouterr().out
    assert "loss True __main__ ['--lr', '1'] hpu:0\n" in out
    assert f"script.py:{line_of(PLAIN, 'net(batch')}  addmm" in out
    assert "[2, 8]:float32, before [4, 8]:float32" in out
    steps = next(line for line in out.splitlines() if line.startswith("│ script "))
    assert [cell.strip() for cell in steps.split("│")[1:4]] == ["script", "44", "3"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"max_compilations": 1}, 0, ""),
        ({"max_compilations": 0}, 3, "--max-compilations=0 is exceeded: 1 compilation after the"),
        ({"max_host_reads": 1}, 0, ""),
        ({"max_host_reads": 0}, 3, "--max-host-reads=0 is exceeded: 1 host read after the warm-up"),
    ],
)
def test_budgets(
    run: Run, capsys: pytest.CaptureFixture[str], options: dict[str, int], code: int, message: str
) -> None:
    assert run(PLAIN, **options) == code
    error = capsys.readouterr().err
    assert (message in error) if message else (error == "")
    if message:
        assert "What to change: " in error
        assert "script.py:" in error


def test_the_scripts_own_code_goes_before_that_of_a_budget(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(PLAIN + "sys.exit(9)\n", max_compilations=0) == 9
    assert "--max-compilations=0 is exceeded" in capsys.readouterr().err


def test_a_budget_of_a_trainer_leaves_the_warm_up_out(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(QUIET + AUTOENCODER, max_compilations=1) == 0
    assert "exceeded" not in capsys.readouterr().err


def test_several_trainers_and_an_error_in_the_last(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = (
        QUIET
        + """
import torch
import lightning as L
from lightning.pytorch.demos.boring_classes import BoringModel

class Broken(BoringModel):
    def test_step(self, batch, batch_idx):
        raise ZeroDivisionError("of the user")

settings = QUIET | {"max_epochs": 1, "limit_train_batches": 5, "limit_val_batches": 0}
L.Trainer(**settings).fit(BoringModel())
torch.ones(3, device="hpu").add(1).cpu()
L.Trainer(accelerator="hpu", devices=1, **settings).fit(BoringModel())
L.Trainer(accelerator="cpu", **settings).fit(BoringModel())
L.Trainer(**settings).test(Broken())
"""
    )
    assert run(code, report=str(tmp_path), max_compilations=0) == 1
    captured = capsys.readouterr()
    assert "ZeroDivisionError: of the user\n" in captured.err
    assert "emulating.py" not in captured.err
    assert 'File "script.py", line' in captured.err
    assert "A Trainer ran on cpu. For the HPU it must say accelerator='auto' or 'hpu'." in (
        captured.out
    )
    facts = json.loads((tmp_path / "compile_monitor.json").read_text())
    assert facts["stages"]["fit"]["steps"] == 10
    # What lies between the Trainers; and after the last one, which moved its weights back.
    assert facts["stages"]["script"]["counts"]["compilations"] == 1
    assert facts["stages"]["script"]["counts"]["host_copies"] == 1 + 2
    assert facts["stopped_by"] == "ZeroDivisionError"


def test_a_script_that_wants_a_gpu_is_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import lightning as L\nL.Trainer(accelerator='gpu', logger=False)\n"
    assert run(code) == 1
    captured = capsys.readouterr()
    assert "MisconfigurationException: No supported gpu backend found!" in captured.err
    assert "the emulated HPU is no GPU, and neither is a Gaudi" in captured.err
    assert "The script did nothing on the HPU" in captured.out


@pytest.mark.parametrize(
    ("code", "expected", "error"),
    [
        ("raise SystemExit(7)", 7, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit('enough')", 1, "enough\n"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt\n"),
        ("1 +", 1, "SyntaxError: invalid syntax\n"),
    ],
)
def test_exit_codes(
    run: Run, capsys: pytest.CaptureFixture[str], code: str, expected: int, error: str
) -> None:
    assert run(code) == expected
    assert capsys.readouterr().err.endswith(error)


def test_a_module_and_what_it_finds_beside_it(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "beside_emulated.py").write_text("WHERE = 'beside'\n")
    code = "import sys, beside_emulated\nprint(__name__, beside_emulated.WHERE, sys.argv[1:])\n"
    for is_module in (True, False):
        assert run(code, "-x", is_module=is_module) == 0
        assert capsys.readouterr().out.startswith("__main__ beside ['-x']\n")
        sys.modules.pop("beside_emulated")


def test_the_monitor_can_be_sent_to_other_processes(run: Run) -> None:
    """As Lightning does with ``strategy="ddp_spawn"``; what it has seen goes along."""
    assert run("import torch\ntorch.ones(3, device='hpu').add(1).cpu()") == 0
    watch = script_monitor._watch
    assert watch is not None
    sent = pickle.loads(pickle.dumps(watch.monitor))
    assert sent.facts["total"]["compilations"] == watch.monitor.facts["total"]["compilations"] == 1


def test_outside_of_emulate_no_callback_joins_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_gaudi_autoload.emulate import callbacks

    monkeypatch.delenv(emulation.EMULATE, raising=False)
    assert callbacks() == []
    assert script_monitor.monitors_for_trainer() == []


# --- what is started ------------------------------------------------------------------------------


def test_options_go_to_the_new_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Started(Exception):
        pass

    seen: list[Any] = []

    def start_python(arguments: list[str], *, lazy: bool, variables: dict[str, str]) -> NoReturn:
        seen.append((arguments, lazy, variables))
        raise Started

    monkeypatch.setattr(emulate_command, "start_python", start_python)
    (tmp_path / "train.py").touch()
    monkeypatch.chdir(tmp_path)
    line = ["--mode", "eager", "--devices", "2", "--strict", "--max-host-reads", "5"]
    with pytest.raises(Started):
        main(["emulate", *line, "--report", "out", "train.py", "--strict", "--devices", "9"])
    arguments, lazy, variables = seen[0]
    expected = ["-m", "lightning_gaudi.cli.emulating", "train.py", "--strict", "--devices", "9"]
    assert (arguments, lazy) == (expected, False)
    told = emulation.Emulation(**json.loads(variables.pop(emulation.EMULATE)))
    assert told == emulation.Emulation(
        report=str(tmp_path / "out"), max_host_reads=5, process_id=os.getpid()
    )
    assert variables == {
        "LIGHTNING_GAUDI_EMULATOR": "1",
        "LIGHTNING_GAUDI_EMULATOR_DEVICES": "2",
        "LIGHTNING_GAUDI_EMULATOR_STRICT": "1",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "error: there is no script 'nowhere.py' in "),
        (["--devices", "0", "x.py"], "argument --devices: must be a whole number of 1 or more"),
        (["--max-host-reads", "-1", "x.py"], "whole number of 0 or more, but it is '-1'"),
        (["--max-compilations", "many", "x.py"], "of 0 or more, but it is 'many'"),
        (["--report", __file__, __file__], "is not a folder"),
        (["--strct", __file__], "unrecognized arguments: --strct\nDid you mean --strict?"),
    ],
)
def test_bad_options(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["emulate", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
