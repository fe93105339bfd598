"""``lightning-gaudi emulate`` as a user starts it: two cards, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_gaudi.runtime.process import kill_python

COMMAND = [sys.executable, "-W", "ignore", "-m", "lightning_gaudi_autoload.command", "emulate"]


def environment(**changes: str) -> dict[str, str]:
    """One in which nobody has asked for an emulator."""
    names = ("LIGHTNING_GAUDI_EMULATOR", "PT_HPU_LAZY_MODE")
    plain = {name: value for name, value in os.environ.items() if name not in names}
    return {**plain, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **changes}


CLI = """
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, DemoModel

def cli_main():
    cli = LightningCLI(DemoModel, BoringDataModule)
    print("device", cli.trainer.strategy.root_device, "rank", cli.trainer.global_rank, flush=True)

if __name__ == "__main__":
    cli_main()
"""


@pytest.mark.slow
def test_a_lightning_cli_script_on_two_cards(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(CLI)
    options = {
        "max_epochs": 1,
        "limit_train_batches": 5,
        "limit_val_batches": 1,
        "logger": "false",
        "enable_checkpointing": "false",
        "enable_progress_bar": "false",
    }
    own = [f"--trainer.{name}={value}" for name, value in options.items()]
    process = subprocess.Popen(
        [*COMMAND, "--devices", "2", "--report", "out", "script.py", "fit", *own],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a rank that waits for ever ends with the test
    )
    try:
        output, error = process.communicate(timeout=150)
    finally:
        kill_python(process)
    assert process.returncode == 0, error
    assert "device hpu:0 rank 0\n" in output
    assert "device hpu:0 rank 1\n" in output
    for name, rank in (("compile_monitor", None), ("compile_monitor.rank1", 1)):
        facts = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert (facts["rank"], facts["stages"]["fit"]["steps"]) == (rank, 5)
    assert output.count("Compile monitor") == 1


@pytest.mark.slow
def test_ctrl_c_still_gives_the_report(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import time, torch\n"
        "torch.ones(3, device='hpu').add(1).cpu()\n"
        "print('begun', flush=True)\n"
        "time.sleep(100)\n"
    )
    process = subprocess.Popen(
        [*COMMAND, "script.py"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=100)
    assert time.monotonic() - begin < 90
    assert process.returncode == 130
    assert error.endswith("KeyboardInterrupt\n")
    assert "│ script " in output
