"""Fits whose every random number matters, for tests that break them off and go on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from training import Classifier, trainer

NUM_BATCHES = 5
EPOCHS = 3


class Noisy(Dataset[Any]):
    """Rows with noise from all generators of the host, drawn when they are read."""

    def __init__(self, *, is_noisy: bool = True) -> None:
        generator = torch.Generator().manual_seed(1)
        self.rows = torch.randn(NUM_BATCHES * 4, 4, generator=generator)
        self.labels = torch.randint(3, (NUM_BATCHES * 4,), generator=generator)
        self.is_noisy = is_noisy

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        row = self.rows[place]
        if self.is_noisy:
            row = row + torch.rand(()) + random.random() + float(np.random.rand())
        return row, self.labels[place]


class Net(Classifier):
    """Dropout on the device, and the rows that each step has seen."""

    def __init__(self, optimizer: Any = None) -> None:
        super().__init__(
            nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)), optimizer
        )
        self.seen: list[float] = []
        self.begun_with: list[int] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if not self.begun_with:
            self.begun_with = torch.hpu.get_rng_state().tolist()  # type: ignore[attr-defined]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch[0].sum().item())
        return super().training_step(batch, batch_idx)


def loader(**settings: Any) -> DataLoader[Any]:
    return DataLoader(
        Noisy(is_noisy=settings.get("num_workers", 0) == 0), 4, shuffle=True, **settings
    )


def fit(
    folder: Path | None = None,
    ckpt_path: Path | None = None,
    *,
    seed: int = 0,
    optimizer: Any = None,
    loader_settings: dict[str, Any] | None = None,
    validation: Any = None,
    **settings: Any,
) -> Net:
    """Fit for three epochs, saving after every step or going on from a checkpoint."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    net = Net(optimizer)
    callbacks = settings.pop("callbacks", [])
    if folder is not None:
        callbacks = [
            *callbacks,
            ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1),
            ModelCheckpoint(folder, filename="end-{epoch}", save_top_k=-1, every_n_epochs=1),
        ]
    run = trainer(
        max_epochs=EPOCHS, callbacks=callbacks, enable_checkpointing=folder is not None, **settings
    )
    run.fit(net, loader(**loader_settings or {}), validation, ckpt_path=ckpt_path)
    return net


def assert_same_end(resumed: Net, unbroken: Net) -> None:
    """Bit for bit: weights, and what the last steps have seen and lost."""
    assert resumed.seen == unbroken.seen[len(unbroken.seen) - len(resumed.seen) :]
    assert resumed.losses == unbroken.losses[len(unbroken.losses) - len(resumed.losses) :]
    for name, value in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
