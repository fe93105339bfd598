"""`CompileMonitor` in eager and in compile mode, where each op or traced graph is a recipe."""

from __future__ import annotations

import pytest

SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader
from lightning_gaudi import CompileMonitor, GaudiStrategy

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 2)

    def training_step(self, batch, batch_idx):
        scaled = nn.functional.leaky_relu(batch)  # shape
        loss = self.out(scaled).pow(2).mean()
        self.seen = loss.item()  # read
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

batches = [torch.ones(2 + max(0, step - 4), 3) for step in range(7)]
source = open(__file__).read().splitlines()
for mode in ("eager", "compile"):
    monitor = CompileMonitor(report=False)
    trainer = L.Trainer(
        accelerator="hpu", devices=1, strategy=GaudiStrategy(mode=mode), max_epochs=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[monitor],
    )
    trainer.fit(Net(), DataLoader(batches, batch_size=None))
    for finding in monitor.facts["findings"]:
        if finding["after_warmup"] and not finding["is_library"]:
            line = source[int(finding["line"].rpartition(":")[2]) - 1]
            label = line.rpartition("# ")[2] if "#" in line else "other"
            texts = [text for text in finding["texts"] if not text.startswith("nothing")]
            print(mode, finding["what"], label, finding["after_warmup"], *texts[:1], sep=" | ")
"""


@pytest.mark.slow
def test_both_modes_name_shapes_and_reads(run_python):
    lines = run_python(SCRIPT, PT_HPU_LAZY_MODE="0").stdout.splitlines()
    eager = [line for line in lines if line.startswith("eager |")]
    compiled = [line for line in lines if line.startswith("compile |")]
    assert "eager | compilation | shape | 2 | [3, 3]:float32, before [2, 3]:float32" in eager
    assert "eager | host read | read | 4" in eager
    assert "compile | compilation | shape | 2 | [3, 3]:float32, before [2, 3]:float32" in compiled
    assert "compile | host read | read | 4" in compiled
