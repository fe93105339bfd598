"""A tiny module that notes the rows it is given, data for it, and a trainer."""

from __future__ import annotations

import lightning as L
import torch
from torch.utils.data import DataLoader

from lightning_gaudi import GaudiStrategy
from lightning_gaudi.data import BucketBatchSampler, BucketCollator

LENGTHS = [3, 9, 4, 5, 8, 2, 9]
BUCKETS = [4, 9]


class Notes(L.LightningModule):
    """Notes (stage, row numbers, length) of each batch in ``seen``."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(32, 1)
        self.seen = []

    def note(self, stage, batch):
        self.seen.append((stage, batch["index"].tolist(), batch["input_ids"].shape[1]))
        return self.embedding(batch["input_ids"]).mean()

    def training_step(self, batch, batch_idx):
        return self.note("fit", batch)

    def validation_step(self, batch, batch_idx):
        self.note("validate", batch)

    def test_step(self, batch, batch_idx):
        self.note("test", batch)

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        self.note("predict", batch)
        return {"index": batch["index"], "length": batch["attention_mask"].sum(1)}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def of(self, stage):
        return [rows for name, rows, _ in self.seen if name == stage]


def rows(lengths=LENGTHS):
    return [{"input_ids": [1] * n, "index": i} for i, n in enumerate(lengths)]


def loader(lengths=LENGTHS, batch_size=2, num_workers=0, **options):
    return DataLoader(
        rows(lengths),
        batch_sampler=BucketBatchSampler(lengths, BUCKETS, batch_size, **options),
        collate_fn=BucketCollator(BUCKETS, pad_token_id=0),
        num_workers=num_workers,
    )


def trainer(*callbacks, **options):
    options = {
        "accelerator": "hpu",
        "strategy": GaudiStrategy(),
        "logger": False,
        "enable_checkpointing": any("Checkpoint" in type(c).__name__ for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 2,
        "callbacks": list(callbacks),
        **options,
    }
    return L.Trainer(**options)
