"""Build the wheel, install it into a clean environment, and use it there.

    python checks/wheel.py

The environment gets the wheel and what it asks for, and nothing of this checkout. PyTorch is the
version of this environment, so that pip fetches no other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ("lightning_gaudi/emulator/hpu_ops.tsv", "lightning_gaudi/py.typed")
# Installed, not found in the working directory; the entry points work; a fit runs on the HPU.
PROGRAM = """
import importlib.metadata
import pathlib
import sys

import torch
from lightning.pytorch.demos.boring_classes import BoringModel
import lightning as L
import lightning_gaudi

folder = pathlib.Path(lightning_gaudi.__file__).parent
assert sys.prefix in str(folder), folder
for name in sys.argv[1:]:
    assert (folder.parent / name).is_file(), name
assert torch.zeros(1, device="hpu").device.type == "hpu"
trainer = L.Trainer(
    accelerator="hpu", max_steps=2, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(BoringModel())
assert trainer.global_step == 2
version = importlib.metadata.version("lightning-gaudi")
print(f"lightning-gaudi {version}, installed from its wheel, trained on the emulated HPU")
"""


def main() -> int:
    """Build, install, use; returns 1 where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--wheel-dir", folder, str(ROOT)], check=True)
        (wheel,) = Path(folder).glob("lightning_gaudi-*.whl")
        environment = Path(folder) / "environment"
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        install = [python, "-m", "pip", "install", "--quiet"]
        torch = next(
            line
            for line in (ROOT / "constraints.txt").read_text().splitlines()
            if line.startswith("torch==")
        )
        subprocess.run([*install, torch], check=True)
        constraints = ["--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*install, *constraints, str(wheel)], check=True)
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        variables |= {"LIGHTNING_GAUDI_EMULATOR": "1", "PT_HPU_LAZY_MODE": "1"}
        where = {"cwd": folder, "env": variables}
        command = [environment / "bin" / "lightning-gaudi", "--help"]
        code = subprocess.run(command, **where, stdout=subprocess.DEVNULL).returncode  # type: ignore[call-overload]
        if code != 0:
            print(f"lightning-gaudi --help ended with code {code}")
            return 1
        used = subprocess.run([python, "-W", "ignore", "-c", PROGRAM, *FILES], **where)  # type: ignore[call-overload]
        return 1 if used.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
