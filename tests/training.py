"""Small modules, data and runs that the tests of training share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_gaudi import GaudiStrategy

# Threads cost more than they save on tensors as small as these.
torch.set_num_threads(1)

NUM_BATCHES = 6
# What Lightning warns of in tiny runs, and deprecations among third parties.
IGNORED_WARNINGS = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*treespec, LeafSpec.*",
        ".*have no `val_dataloader`.*",
    )
]


class Classifier(L.LightningModule):
    """A network under cross entropy with AdamW; remembers the loss of every step.

    Args:
        network: Maps a batch's first tensor to logits.
        optimizer: Makes the optimizer, or what else ``configure_optimizers`` returns.
    """

    def __init__(self, network: nn.Module, optimizer: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.network = network
        self._optimizer = optimizer
        self.losses: list[float] = []

    def loss(self, batch: list[Tensor]) -> Tensor:
        logits = self.network(batch[0])
        return functional.cross_entropy(logits.flatten(0, -2), batch[1].flatten())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, prog_bar=True)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), prog_bar=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.network(batch[0])

    def configure_optimizers(self) -> Any:
        if self._optimizer is not None:
            return self._optimizer(self.parameters())
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class TiedGRU(nn.Module):
    """A language model whose embedding and output share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.output = nn.Linear(8, 11)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.gru(self.embedding(tokens))[0])


class TinyTransformer(nn.Module):
    """An encoder that classifies by its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.encoder(self.embedding(tokens)).mean(1))


def mlp() -> nn.Module:
    """4 features to 3 classes."""
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def conv_net() -> nn.Module:
    """1x6x6 images to 3 classes, with running statistics."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def features(shape: tuple[int, ...] = (4,), rows: int = NUM_BATCHES * 4) -> DataLoader[Any]:
    """Random features of a shape with 3 classes, 4 rows a batch."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(rows, *shape, generator=generator)
    labels = torch.randint(3, (rows,), generator=generator)
    return DataLoader(TensorDataset(inputs, labels), batch_size=4)


def tokens(num_classes: int | None = 3, rows: int = NUM_BATCHES * 4) -> DataLoader[Any]:
    """Random token ids, with a class a row or, with None, the ids themselves as labels."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(11, (rows, 5), generator=generator)
    if num_classes is None:
        return DataLoader(TensorDataset(ids, ids.roll(-1, 1)), batch_size=4)
    labels = torch.randint(num_classes, (rows,), generator=generator)
    return DataLoader(TensorDataset(ids, labels), batch_size=4)


def trainer(accelerator: str = "hpu", **settings: Any) -> L.Trainer:
    """A quiet Trainer, on the HPU by GaudiStrategy or on the CPU as stock Lightning has it."""
    settings = {
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    } | settings
    if accelerator == "hpu":
        settings.setdefault("strategy", GaudiStrategy())
    settings.setdefault("devices", 1)
    return L.Trainer(accelerator=accelerator, **settings)
