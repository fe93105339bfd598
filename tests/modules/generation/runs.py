"""Runs of a trainer that the tests of generation share."""

from __future__ import annotations

import lightning as L
from torch.utils.data import DataLoader

from lightning_gaudi import GaudiStrategy, HPUGraphCallback
from lightning_gaudi.modules.generation import TextGenerationModule


def trainer(*callbacks, **kwargs):
    if "strategy" not in kwargs:
        kwargs["strategy"] = GaudiStrategy()
    kwargs = {
        "accelerator": "hpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": list(callbacks),
        **kwargs,
    }
    return L.Trainer(**kwargs)


def predict(module, batches, **kwargs):
    """Predict with graphs; the rows of all batches, and the graphs' callback."""
    graphs = HPUGraphCallback()
    found = trainer(graphs, **kwargs).predict(module, DataLoader(batches, batch_size=None))
    return rows_of(found), graphs


def rows_of(predictions, name="token_ids"):
    """What all batches predicted, row after row."""
    return [row for batch in predictions for row in batch[name]]


def generated(model, batches, max_new_tokens=20, **options):
    """New tokens of a new module, with graphs."""
    module = TextGenerationModule(model, max_new_tokens=max_new_tokens, **options)
    return predict(module, batches)[0]
