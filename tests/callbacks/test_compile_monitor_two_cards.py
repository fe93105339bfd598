"""On two cards each rank writes its own report, and one prints the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Lightning starts this script once more for the second rank, which reads one value more a step.
SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import lightning as L
from lightning_gaudi import CompileMonitor, GaudiStrategy
from training import Classifier, features, mlp

class Reads(Classifier):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.global_rank == 1:
            loss.item()  # more
        return loss

L.Trainer(
    accelerator="hpu", strategy=GaudiStrategy(), devices=2, max_epochs=1, logger=False,
    enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    use_distributed_sampler=False, default_root_dir=sys.argv[1], callbacks=[CompileMonitor()],
).fit(Reads(mlp()), features())
"""


@pytest.mark.slow
def test_each_rank_writes_its_own_report(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    out = tmp_path / "out"
    result = subprocess.run(
        [sys.executable, str(script), str(out)],
        env=os.environ
        | {
            "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{Path(__file__).parent.parent}",
            "LIGHTNING_GAUDI_EMULATOR_DEVICES": "2",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    facts = [
        json.loads((out / f"compile_monitor.rank{rank}.json").read_text()) for rank in range(2)
    ]
    assert [(f["rank"], f["world_size"], f["stages"]["fit"]["steps"]) for f in facts] == [
        (0, 2, 6),
        (1, 2, 6),
    ]
    number = SCRIPT.splitlines().index("            loss.item()  # more") + 1
    mine = [
        [(f["line"], f["count"]) for f in rank["findings"] if f["line"] == f"{script}:{number}"]
        for rank in facts
    ]
    assert mine == [[], [(f"{script}:{number}", 6)]]
    for rank in range(2):
        assert f"rank {rank} of 2" in (out / f"compile_monitor.rank{rank}.html").read_text()
    assert not (out / "compile_monitor.html").exists()
    assert result.stdout.count("Compile monitor:") == 1
    assert "compile_monitor.rank0.html" in result.stdout
