"""On two cards rates are those of both, and ranks with different numbers of batches end well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Lightning starts this script once more for the second rank. A step takes 0.5 s of the clock on
# the first and 1 s on the second, which also has a batch less to predict.
SCRIPT = """
import csv, os, sys, warnings
warnings.simplefilter("ignore")
import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning_gaudi import GaudiStrategy, HPUProfiler, HPUThroughputMonitor
from lightning_gaudi.callbacks import throughput
from training import Classifier, features, mlp

now = 0.0
throughput._clock = lambda: now

class Timed(Classifier):
    def wait(self):
        global now
        now += 0.5 * (1 + self.global_rank)

    def training_step(self, batch, batch_idx):
        self.wait()
        return self.loss(batch)

    def predict_step(self, batch, batch_idx):
        self.wait()
        return super().predict_step(batch, batch_idx)

folder = sys.argv[1]
monitor = HPUThroughputMonitor(window_size=2, warmup_steps=1)
run = L.Trainer(
    accelerator="hpu", strategy=GaudiStrategy(), devices=2, max_epochs=1,
    logger=CSVLogger(folder, name="", version="logs"), enable_progress_bar=False,
    enable_model_summary=False, enable_checkpointing=False, use_distributed_sampler=False,
    callbacks=[monitor], profiler=HPUProfiler(folder, wait=1, warmup=0, active=2),
)
module = Timed(mlp())
run.fit(module, features())
figures = [monitor.figures["fit"]]
run.predict(module, features(rows=24 - 4 * run.global_rank), return_predictions=False)
figures.append(monitor.figures["predict"])
torch.save(figures, f"{folder}/rank{run.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_cards(tmp_path: Path) -> None:
    import torch
    from traces import ranges_in

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    tests = str(Path(__file__).parent.parent)
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ
        | {
            "PYTHONPATH": tests,
            "LIGHTNING_GAUDI_EMULATOR_DEVICES": "2",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    fits, predicts = zip(
        *(torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)),
        strict=True,
    )
    for figures in (*fits, *predicts):  # 2 + 1 batches of four rows a second
        assert figures["batches_per_second"] == pytest.approx(3.0)
        assert figures["samples_per_second"] == pytest.approx(12.0)
    logged = (tmp_path / "logs" / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(logged[0].split(","), line.split(","), strict=True)) for line in logged[1:]]
    found = [
        (row["throughput/fit/samples_per_second"], row["throughput/fit/card/samples_per_second"])
        for row in rows
        if row["throughput/fit/samples_per_second"]
    ]
    assert [tuple(map(float, pair)) for pair in found] == [(12.0, 8.0), (12.0, 8.0)]
    assert result.stdout.count("Throughput, 2 cards") == 2

    traces = sorted(path.name for path in tmp_path.glob("*.pt.trace.json"))
    assert traces == [
        f"{stage}-hpu-rank{rank}.1.pt.trace.json" for stage in ("fit", "predict") for rank in (0, 1)
    ]
    for rank in range(2):
        names = [r.name for r in ranges_in(tmp_path / f"fit-hpu-rank{rank}.1.pt.trace.json")]
        assert names.count("[Strategy]GaudiStrategy.training_step") == 2
        assert (
            f"HPUProfiler: fit, rank {rank}\n" in (tmp_path / f"fit-hpu-rank{rank}.txt").read_text()
        )
