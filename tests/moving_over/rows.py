"""The rows of the guide's tables with their code, and the names that the code uses."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import DeviceStatsMonitor
from snippets import Row, table_rows
from torch import nn
from torch.utils.data import DataLoader
from training import trainer

import lightning_gaudi
from lightning_gaudi.modules.diffusion import DiffusionSampler
from lightning_gaudi.modules.generation import TextGenerationModule
from lightning_gaudi.runtime.step import mark_step

GUIDE = "docs/moving-over.md"
ROWS = table_rows(GUIDE)


def rows_under(heading: str) -> list[Row]:
    """The rows of one table."""
    found = [row for row in ROWS if row.heading.startswith(heading)]
    assert found, heading
    return found


def code_of(heading: str, argument: str) -> str:
    """The code of the row of an argument: what stands first in backticks in its last column."""
    (row,) = [row for row in rows_under(heading) if argument in row.code(0)]
    return row.code(2)[0]


def quiet_trainer(**settings: Any) -> L.Trainer:
    """``Trainer``, with one device and without files and bars unless they are asked for."""
    return trainer(**({"strategy": "auto", "accelerator": "auto", "max_epochs": 1} | settings))


def evaluated(code: str, **names: Any) -> Any:
    """What code of the guide gives.

    Args:
        code: An expression.
        **names: What it calls the reader's own things: ``model``, ``pipeline``, ``data`` ...
    """
    public = {name: getattr(lightning_gaudi, name) for name in lightning_gaudi.__all__}
    namespace = public | {
        "L": L,
        "torch": torch,
        "nn": nn,
        "DataLoader": DataLoader,
        "DeviceStatsMonitor": DeviceStatsMonitor,
        "DiffusionSampler": DiffusionSampler,
        "TextGenerationModule": TextGenerationModule,
        "Trainer": quiet_trainer,
        "mark_step": mark_step,
    }
    return eval(code, namespace | names)
