"""On two cards: training is that of both batches at once, metrics are those of all rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training
from modules.tasks_cases import batches, make
from torch.utils.data import DataLoader

pytestmark = [pytest.mark.slow, *training.IGNORED_WARNINGS]

# Lightning starts this script once more for the second rank.
SCRIPT = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import lightning as L
from torch.utils.data import DataLoader
from lightning_gaudi import GaudiStrategy, HPUGraphCallback
from modules.tasks_cases import batches, make

rank = int(os.environ.get("LOCAL_RANK", 0))
found = {}
for name in ("classes", "numbers"):
    own = batches(name, 6)[rank::2]
    module = make(name, learning_rate=1e-3, warmup_steps=2, optimizer="adamw")
    run = L.Trainer(
        accelerator="hpu", strategy=GaudiStrategy(), devices=2, max_epochs=2, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        use_distributed_sampler=False, callbacks=[HPUGraphCallback()], num_sanity_val_steps=0,
    )
    loader = DataLoader(own, batch_size=None)
    run.fit(module, loader, loader)
    metrics = {k: float(v) for k, v in run.callback_metrics.items() if k.startswith("val/")}
    sums = [p.detach().double().cpu().abs().sum() for p in module.parameters()]
    found[name] = [metrics, float(sum(sums))]
with open(f"{sys.argv[1]}/rank{rank}.json", "w") as file:
    json.dump(found, file)
"""


def expected(name: str) -> tuple[dict[str, float], float]:
    """The same in one process: each step of both ranks' batches together."""
    data = batches(name, 6)
    pairs = [
        {key: torch.cat([data[i][key], data[i + 1][key]]) for key in data[i]} for i in (0, 2, 4)
    ]
    module = make(name, learning_rate=1e-3, warmup_steps=2, optimizer="adamw")
    trainer = training.trainer(max_epochs=2)
    loader: Any = DataLoader(pairs, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader, loader)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    return metrics, float(sum(p.detach().double().cpu().abs().sum() for p in module.parameters()))


def test_two_cards(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {
        "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{Path(__file__).parent.parent}",
        "LIGHTNING_GAUDI_EMULATOR_DEVICES": "2",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    for name, (metrics, weights) in ranks[0].items():
        wanted_metrics, wanted_weights = expected(name)
        assert metrics == pytest.approx(wanted_metrics, rel=1e-4)
        assert weights == pytest.approx(wanted_weights, rel=1e-6)
