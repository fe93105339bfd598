"""Fits in which something goes wrong in one rank, for `run_ranks`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from training import Classifier, features, trainer

from lightning_gaudi import GaudiStrategy

TIMEOUT_S = 60


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Net(Classifier):
    """Does something at a step of a rank.

    Args:
        wrong: What; nothing where it is empty.
        rank: Where.
        step: Before which optimizer step.
    """

    def __init__(self, wrong: str = "", rank: int = 1, step: int = 5) -> None:
        super().__init__(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 3)))
        self.wrong, self.rank, self.step = wrong, rank, step

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        is_it = self.wrong and self.trainer.global_step == self.step
        if self.wrong == "collective" and is_it:
            # This rank waits in the barrier for the other, and dies there.
            if self.global_rank == self.rank:
                threading.Timer(0.5, die).start()
            else:
                time.sleep(1)
            torch.distributed.barrier()
        loss = super().training_step(batch, batch_idx)
        if is_it and self.global_rank == self.rank:
            getattr(self, f"do_{self.wrong}", lambda _: None)(loss)
        return loss

    def do_backward(self, loss: Tensor) -> None:
        loss.register_hook(lambda _: die())

    def do_raise(self, _: Tensor) -> None:
        raise ValueError("a bad row")

    def do_exit(self, _: Tensor) -> None:
        sys.exit(3)

    def do_leave(self, _: Tensor) -> None:
        os._exit(0)


def fit(
    folder: str,
    wrong: str = "",
    rank: int = 1,
    step: int = 5,
    *,
    ckpt_path: str | None = None,
    on_exception: bool = False,
    devices: int = 2,
) -> dict[str, Tensor]:
    """Nine steps, saved after every second; the weights at the end."""
    torch.manual_seed(0 if ckpt_path is None else 7)
    if wrong == "writing":
        _die_while_writing(rank, Path(folder) / f"step={step}.ckpt")
    settings: dict[str, Any] = {"every_n_train_steps": 2, "save_top_k": -1, "filename": "{step}"}
    run = trainer(
        devices=devices,
        max_epochs=3,
        limit_train_batches=3,
        strategy=GaudiStrategy(timeout=timedelta(seconds=TIMEOUT_S)),
        callbacks=[ModelCheckpoint(folder, save_on_exception=on_exception, **settings)],
        enable_checkpointing=True,
    )
    net = Net(wrong, rank, step)
    run.fit(net, features(), ckpt_path=ckpt_path)
    return {name: value.clone() for name, value in net.state_dict().items()}


def _die_while_writing(rank: int, path: Path) -> None:
    """Kill a rank when a file's content is on the disk and its name is not."""
    from lightning_gaudi.checkpoint import io

    plain_save = io._save

    def save(content: Any, file: Any) -> None:
        plain_save(content, file)
        is_this = f"step={content['global_step']}.ckpt" == path.name
        if is_this and int(os.environ.get("LOCAL_RANK", "0")) == rank:
            file.flush()
            die()

    io._save = save
