"""Runs on two emulated cards in which something goes wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from distributed.jobs import finish, start_script

# Lightning starts this script once more for the second rank. What is to go wrong is in WRONG.
TRAIN = """
import os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore")
from datetime import timedelta
import lightning as L
import torch
import lightning_gaudi
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_gaudi import GaudiStrategy, HPUCheckpointIO
from torch import nn
from training import Classifier, features

torch.set_num_threads(1)
folder, options = sys.argv[1], dict(word.split("=") for word in sys.argv[2:])

class Net(Classifier):
    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 3)))

    def on_fit_start(self):
        rank = self.global_rank
        with open(f"{folder}/pid{rank}", "w") as file:
            file.write(str(os.getpid()))

    def at(self, rank, step):
        return self.global_rank == rank and self.trainer.global_step == step and not RESUMED

RESUMED = "resume" in options
%s

torch.manual_seed(0)
net = Net()
run = L.Trainer(
    accelerator="hpu", devices=2, max_epochs=3, logger=False, enable_progress_bar=False,
    enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
    strategy=GaudiStrategy(timeout=timedelta(seconds=float(options.get("timeout", 60)))),
    plugins=[HPUCheckpointIO(asynchronous=bool(options.get("asynchronous")))],
    callbacks=[ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=2)],
)
run.fit(net, features(), ckpt_path=options.get("resume"))
if run.is_global_zero:
    torch.save(net.state_dict(), f"{folder}/weights.pt")
AFTER
"""

DIE = "os.kill(os.getpid(), signal.SIGKILL)"


def train(
    folder: Path, wrong: str = "", *options: str, after: str = "", launcher: tuple[str, ...] = ()
) -> tuple[int, str]:
    """Run the training script to its end; exit code and what it has said."""
    code = (TRAIN % wrong).replace("AFTER", after)
    process = start_script(folder, code, str(folder), *options, launcher=launcher)
    exit_code, out, err = finish(process)
    return exit_code, out + err


def torchrun() -> tuple[str, ...]:
    return ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def pid_of(folder: Path, rank: int) -> int:
    return int((folder / f"pid{rank}").read_text())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return ") Z" not in Path(f"/proc/{pid}/stat").read_text()


def show(text: str) -> None:
    print(text, file=sys.stderr)
