"""`HPUProfiler` from YAML, and in the modes without a lazy graph."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from traces import ranges_in

from lightning_gaudi.cli import main

CONFIG = {
    "seed_everything": 0,
    "model": {"class_path": "lightning.pytorch.demos.BoringModel"},
    "trainer": {
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "profiler": {
            "class_path": "HPUProfiler",
            "init_args": {"dirpath": "profiles", "wait": 2, "warmup": 1, "active": 2},
        },
        "callbacks": [{"class_path": "HPUThroughputMonitor", "init_args": {"window_size": 10}}],
    },
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LightningCLI and jsonargparse
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_yaml_names_them_shortly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("sys.argv", ["lightning-gaudi"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    main(["predict", "--config", "config.yaml", "--return_predictions", "false"])
    count = Counter(
        each.name for each in ranges_in(tmp_path / "profiles" / "predict-hpu.1.pt.trace.json")
    )
    assert count["[Strategy]GaudiStrategy.predict_step"] == count["mark_step"] == 2
    assert "Throughput" in capsys.readouterr().out


SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import lightning as L
import torch
from lightning_gaudi import GaudiStrategy, HPUProfiler, HPUThroughputMonitor
from training import Classifier, features, mlp, trainer

quiet = dict(max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
             enable_checkpointing=False)
for mode in ("eager", "compile"):
    module, monitor = Classifier(mlp()), HPUThroughputMonitor(window_size=2)
    expected = trainer("cpu").predict(module, features())
    run = L.Trainer(
        accelerator="hpu", strategy=GaudiStrategy(mode), callbacks=[monitor], **quiet,
        profiler=HPUProfiler("out", mode, wait=2, warmup=1, active=2),
    )
    for ours, theirs in zip(run.predict(module, features()), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    run.fit(module, features())
    assert monitor.figures["fit"]["samples_per_second"] > 0
"""


@pytest.mark.slow
def test_modes_without_a_lazy_graph(run_python: Any, tmp_path: Path) -> None:
    run_python(SCRIPT, PT_HPU_LAZY_MODE="0", PYTHONPATH=str(Path(__file__).parent))
    for mode in ("eager", "compile"):
        for stage, step in (("fit", "training_step"), ("predict", "predict_step")):
            found = ranges_in(tmp_path / "out" / f"{stage}-{mode}.1.pt.trace.json")
            count = Counter(each.name for each in found)
            assert count[f"[Strategy]GaudiStrategy.{step}"] == 2
            assert count["mark_step"] == count["flush"] == count["replay"] == 0
