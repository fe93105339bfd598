"""Precisions, and the modes that need a process of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import training
from modules.tasks_cases import batches, make, stock_of
from torch.utils.data import DataLoader

from lightning_gaudi import HPUGraphCallback

pytestmark = training.IGNORED_WARNINGS
HELPERS = f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"


class Losses(training.L.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
        assert outputs["loss"].dtype == torch.float32
        self.losses.append(outputs["loss"].item())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", ["classes", "numbers", "spans", "llama"])
def test_bfloat16(name: str, precision: str) -> None:
    """The model computes in bfloat16, losses and metrics in float32."""
    data = batches(name, 3)
    module = make(name, learning_rate=1e-3)
    stock = stock_of(module)
    if precision == "bf16-true":
        stock.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        expected = stock(**data[0]).loss.item()
    kept, graphs = Losses(), HPUGraphCallback()
    trainer = training.trainer(precision=precision, max_epochs=2, callbacks=[kept, graphs])
    loader = DataLoader(data, batch_size=None)
    trainer.fit(module, loader, loader)
    assert kept.losses[0] == pytest.approx(expected, rel=0.02)
    assert kept.losses[0] != float(torch.tensor(kept.losses[0]).bfloat16())
    assert (graphs.stats.captures, graphs.stats.replays) == (1, 5)
    (result,) = trainer.validate(module, loader, verbose=False)
    assert result["val/loss"] != float(torch.tensor(result["val/loss"]).bfloat16())
    wanted = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {p.dtype for p in module.parameters()} == {wanted}


@pytest.mark.slow
def test_eager_and_compiled(run_python) -> None:
    """Losses and metrics are those of lazy mode, to float32's last digits."""
    data = batches("classes", 3)
    module = make("classes", learning_rate=1e-3, warmup_steps=2)
    kept = Losses()
    trainer = training.trainer(max_epochs=2, callbacks=[kept])
    loader = DataLoader(data, batch_size=None)
    trainer.fit(module, loader, loader)
    expected = [*kept.losses, *(float(trainer.callback_metrics[n]) for n in ("val/loss", "val/f1"))]
    code = """
import lightning as L
from torch.utils.data import DataLoader
from lightning_gaudi import GaudiStrategy
from lightning_gaudi.runtime import loading
loading.load("eager")
from modules.tasks_cases import batches, make

class Losses(L.Callback):
    def __init__(self):
        self.losses = []
    def on_train_batch_end(self, trainer, module, outputs, *rest):
        self.losses.append(outputs["loss"].item())

loader = DataLoader(batches("classes", 3), batch_size=None)
for mode in ("eager", "compile"):
    module = make("classes", learning_rate=1e-3, warmup_steps=2)
    kept = Losses()
    trainer = L.Trainer(
        accelerator="hpu", devices=1, strategy=GaudiStrategy(mode), max_epochs=2, logger=False,
        callbacks=[kept], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(module, loader, loader)
    metrics = [float(trainer.callback_metrics[n]) for n in ("val/loss", "val/f1")]
    print(*kept.losses, *metrics)
    predicted = trainer.predict(module, loader)
    print(float(sum(p["probabilities"].sum() for p in predicted)))
"""
    lines = run_python(HELPERS + code, PT_HPU_LAZY_MODE="0").stdout.splitlines()
    numbers = [[float(word) for word in line.split()] for line in lines if line[:1].isdigit()]
    assert numbers[0] == pytest.approx(expected, rel=1e-5)
    assert numbers[2] == pytest.approx(expected, rel=1e-5)
    assert numbers[1] == pytest.approx([12.0])
    assert numbers[3] == pytest.approx([12.0])


@pytest.mark.slow
def test_cards_have_a_kernel_for_all_of_it(run_python) -> None:
    """Strict: no op without a kernel on the card, and 32 bits."""
    code = """
from torch.utils.data import DataLoader
from lightning_gaudi import HPUGraphCallback
import training
from modules.tasks_cases import batches, config_of, make
from lightning_gaudi.modules import TransformersModule

for name in ("classes", "multilabel", "numbers", "token-classes", "spans", "llama", "t5"):
    loader = DataLoader(batches(name, 2), batch_size=None)
    module = make(name, warmup_steps=2)
    trainer = training.trainer(max_epochs=1, callbacks=[HPUGraphCallback()], gradient_clip_val=1.0)
    trainer.fit(module, loader, loader)
    trainer.predict(module, loader)
    print("ran", name)
loader = DataLoader(batches("classes", 1), batch_size=None)
for pooling in ("mean", "cls", "last"):
    module = TransformersModule(
        config_of("classes"), "feature-extraction", pooling=pooling, normalize=True
    )
    training.trainer().predict(module, loader)
    print("ran", pooling)
"""
    lines = run_python(HELPERS + code, LIGHTNING_GAUDI_EMULATOR_STRICT="1").stdout.splitlines()
    assert sum(line.startswith("ran ") for line in lines) == 10


def test_on_the_cpu_too() -> None:
    """The module is no HPU's alone: stock Lightning runs it as it is."""
    data = batches("classes", 3)
    curves = []
    for accelerator in ("hpu", "cpu"):
        kept = Losses()
        module = make("classes", learning_rate=1e-3, optimizer="adamw")
        trainer = training.trainer(accelerator, max_epochs=1, callbacks=[kept])
        trainer.fit(module, DataLoader(data, batch_size=None))
        curves.append(kept.losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    stock = stock_of(make("classes"))
    assert curves[1][0] == pytest.approx(stock(**data[0]).loss.item(), rel=1e-5)
