"""A small classifier, its data, and runs of a trainer that the tests of callbacks share."""

from __future__ import annotations

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from lightning_gaudi import GaudiStrategy


class Classifier(L.LightningModule):
    """Children are called by the steps; there is no forward."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)
        self.accuracy = MulticlassAccuracy(3, average="micro")

    def logits(self, x):
        return self.head(self.body(x))

    def step(self, batch, name):
        x, y = batch
        logits = self.logits(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.accuracy.update(logits, y)
        self.log(f"{name}_loss", loss)
        self.log(f"{name}_acc", self.accuracy)
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        return self.step(batch, "val")

    def test_step(self, batch, batch_idx):
        return self.step(batch, "test")

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self.logits(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class WithForward(Classifier):
    def forward(self, x):
        return self.head(self.body(x))

    def logits(self, x):
        return self(x)


def data(rows=22):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, 4, generator=generator)
    y = torch.randint(0, 3, (rows,), generator=generator)
    return DataLoader(list(zip(x, y, strict=True)), batch_size=4)  # the last batch is ragged


def trainer(*callbacks, **kwargs):
    kwargs = {
        "accelerator": "hpu",
        "strategy": GaudiStrategy(),
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 2,
        "callbacks": list(callbacks),
        **kwargs,
    }
    return L.Trainer(**kwargs)


def make(cls=Classifier):
    torch.manual_seed(3)
    return cls()


def has_own_forward(module):
    return [name for name, child in module.named_modules() if "forward" in child.__dict__]


def run_all(module, *callbacks, **kwargs):
    t = trainer(*callbacks, **kwargs)
    t.fit(module, data(), data())
    fitted = {k: float(v) for k, v in t.callback_metrics.items()}
    (validated,) = t.validate(module, data(), verbose=False)
    (tested,) = t.test(module, data(), verbose=False)
    predicted = torch.cat(t.predict(module, data()))
    return fitted, validated, tested, predicted
