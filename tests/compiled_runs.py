"""Helpers for scripts that run in eager mode, in a process of their own."""

from __future__ import annotations

import lightning as L
import torch
from torch import nn
from training import Classifier, features, mlp

from lightning_gaudi import GaudiStrategy
from lightning_gaudi.runtime import loading

loading.load("eager")


def trainer(mode, *callbacks, **settings):
    """A quiet trainer in a mode."""
    settings = {"max_epochs": 2, "num_sanity_val_steps": 1, **settings}
    return L.Trainer(
        accelerator="hpu",
        devices=1,
        strategy=GaudiStrategy(mode),
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def data():
    """Batches of 4, the last one ragged."""
    return features(rows=22)


def make(cls=Classifier, network=mlp):
    torch.manual_seed(1)
    return cls(network())


def run_all(mode, *callbacks, cls=Classifier, network=mlp, **settings):
    """Fit, validate, test, predict; all that comes out, as numbers and tensors."""
    module = make(cls, network)
    t = trainer(mode, *callbacks, **settings)
    torch.manual_seed(2)
    t.fit(module, data(), data())
    numbers = [*module.losses, *t.validate(module, data(), verbose=False)[0].values()]
    numbers += t.test(module, data(), verbose=False)[0].values()
    tensors = [torch.cat(t.predict(module, data()))]
    tensors += [value.cpu() for value in module.state_dict().values()]
    swapped = [n for n, m in module.named_modules() for a in m.__dict__ if a in NAMES]
    assert swapped == [], swapped
    return numbers, tensors


NAMES = ("forward", "training_step", "validation_step", "test_step", "predict_step")


def assert_same(found, expected):
    """Equal but for rounding: a compiled graph may use other kernels."""
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(expected[0]))
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other)


class Norms(nn.Module):
    """Running statistics and dropout of nothing."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.0), nn.Linear(8, 3)
        )

    def forward(self, x):
        return self.layers(x)
