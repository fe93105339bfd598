"""`HPUPrecision` from a YAML config, and beside a strategy that brings one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from training import IGNORED_WARNINGS, Classifier, features, mlp

from lightning_gaudi import GaudiStrategy, HPUPrecision
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import loading
from lightning_gaudi.runtime.optimizers import is_fused_adamw

pytestmark = [
    *IGNORED_WARNINGS,
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended"),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning"
    ),  # between LightningCLI and jsonargparse
]

CONFIG = """
trainer:
  accelerator: hpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  {where}
"""
AS_PLUGIN = """plugins:
  - class_path: lightning_gaudi.HPUPrecision
    init_args: {settings}"""


FROM_A_FILE = """strategy:
    class_path: lightning_gaudi.GaudiStrategy.from_gaudi_config
    init_args: {{config: {config}}}
    dict_kwargs: {{mode: lazy}}"""


class Net(Classifier):
    """What the CLI makes, without arguments."""

    def __init__(self) -> None:
        super().__init__(mlp())

    def train_dataloader(self) -> Any:
        return features()


def run_cli(where: str, folder: Path) -> L.Trainer:
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(where=where))
    return LightningCLI(
        Net,
        args=["fit", "--config", str(config)],
        save_config_callback=None,
        seed_everything_default=0,
    ).trainer


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_a_plugin(precision: str, tmp_path: Path) -> None:
    where = AS_PLUGIN.format(settings=f"{{precision: {precision}}}")
    plugin = run_cli(where, tmp_path).precision_plugin
    assert type(plugin) is HPUPrecision
    assert plugin.precision == precision


def test_op_lists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "is_loaded", lambda: False)
    monkeypatch.setenv("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", "")
    monkeypatch.setenv("PT_HPU_AUTOCAST_FP32_OPS_LIST", "")
    (tmp_path / "fp32").write_text("softmax\nexp\n")
    settings = (
        f"{{precision: bf16-mixed, lower_precision_ops: [linear, gelu], fp32_ops: {tmp_path}/fp32}}"
    )
    run_cli(AS_PLUGIN.format(settings=settings), tmp_path)
    lists = [
        Path(os.environ[variable]).read_text().split()
        for variable in (
            "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST",
            "PT_HPU_AUTOCAST_FP32_OPS_LIST",
        )
    ]
    assert lists == [["linear", "gelu"], ["softmax", "exp"]]


def test_a_gaudi_config(tmp_path: Path) -> None:
    path = tmp_path / "gaudi_config.json"
    path.write_text('{"use_torch_autocast": true, "use_fused_adam": true}')
    run = run_cli(FROM_A_FILE.format(config=path), tmp_path)
    assert type(run.strategy) is GaudiStrategy
    assert run.precision_plugin.precision == "bf16-mixed"
    assert is_fused_adamw(run.optimizers[0])


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true"])
def test_two_precisions(precision: Any) -> None:
    """Lightning itself would take the strategy's, without a word."""
    message = (
        f"precision={precision!r} of the Trainer contradicts the strategy's precision plugin, "
        "HPUPrecision('bf16-mixed'). Leave out one of them."
    )
    for strategy in (
        GaudiStrategy(precision_plugin=HPUPrecision("bf16-mixed")),
        GaudiStrategy.from_gaudi_config({"use_torch_autocast": True}),
    ):
        with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
            L.Trainer(accelerator="hpu", strategy=strategy, precision=precision, logger=False)
        run = L.Trainer(accelerator="hpu", strategy=strategy, precision="bf16-mixed", logger=False)
        assert run.precision_plugin is strategy.precision_plugin


def test_the_default_of_the_trainer_contradicts_nothing() -> None:
    plugin = HPUPrecision("bf16-true")
    run = L.Trainer(strategy=GaudiStrategy(precision_plugin=plugin), logger=False)
    assert run.precision_plugin is plugin
    with run.init_module():
        assert torch.nn.Linear(1, 1).weight.dtype is torch.bfloat16
