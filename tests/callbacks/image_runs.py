"""A module that predicts images without a model, and what runs leave in a folder."""

from __future__ import annotations

import json
import threading

import numpy as np
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch.utils.data import DataLoader


class Painter(LightningModule):
    """Image i is of one colour, i."""

    def __init__(self, **columns):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(self.layer.weight, 1)
        torch.nn.init.constant_(self.layer.bias, 0)
        self.columns = columns
        self.threads = []

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        self.threads.append({thread.name for thread in threading.enumerate()})
        index = batch["index"]
        shape = (len(index), 3, 8, 8)
        images = (index.float() / 255).reshape(-1, 1, 1, 1).expand(shape)
        columns = {name: [value] * len(index) for name, value in self.columns.items()}
        return {"images": images, "index": index, "seed": index + 100, **columns}


def numbers(count=7, batch_size=3):
    return DataLoader([{"index": i} for i in range(count)], batch_size=batch_size)


def content(folder):
    """All files of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def index_of(folder):
    return json.loads((folder / "index.json").read_text("utf-8"))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def writer_threads():
    return [thread for thread in threading.enumerate() if thread.name == "ImageWriter"]
