"""Checks of whole runs through Lightning's Trainer."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_gaudi.callbacks import CompileMonitor, HPUGraphCallback
from lightning_gaudi.runtime import environment
from lightning_gaudi.selftest.checking import Figures, expect, expect_close
from lightning_gaudi.strategy import GaudiStrategy


class Classifier(L.LightningModule):
    """Two layers under cross entropy; keeps the loss of every step, on its device.

    Args:
        dropout: Of the hidden layer.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 3))
        self.losses: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (B, 3) for features of shape (B, 8)."""
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        loss = functional.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.detach().clone())
        return loss

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The logits of a batch."""
        logits: Tensor = self(batch[0])
        return logits

    def configure_optimizers(self) -> Any:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loader(rows: int = 64, batch_size: int = 8) -> DataLoader[Any]:
    """Features of shape (B, 8) with one of three classes, in a fixed order."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 8, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=batch_size)


def trainer(accelerator: str = "hpu", **settings: Any) -> L.Trainer:
    """A quiet Trainer on one card in the process's mode, or on the CPU."""
    settings = {
        "max_epochs": 3,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "devices": 1,
    } | settings
    if accelerator == "hpu":
        mode = "lazy" if environment.lazy_mode() == "1" else "eager"
        settings.setdefault("strategy", GaudiStrategy(mode=mode))  # type: ignore[arg-type]
    return L.Trainer(accelerator=accelerator, **settings)


def _compare(figures: Figures, actual: Classifier, expected: Classifier, tolerance: float) -> None:
    losses = [torch.stack([loss.cpu() for loss in module.losses]) for module in (actual, expected)]
    expect_close(figures, "losses", losses[0], losses[1], tolerance)
    figures["last loss"] = [float(loss[-1]) for loss in losses]
    for name, parameter in actual.state_dict().items():
        expect_close(figures, name, parameter, expected.state_dict()[name], tolerance)


def fit_equals_the_cpu(figures: Figures) -> None:
    """24 steps from the same weights."""
    modules = {accelerator: Classifier() for accelerator in ("hpu", "cpu")}
    for accelerator, module in modules.items():
        trainer(accelerator).fit(module, loader())
    _compare(figures, modules["hpu"], modules["cpu"], 2e-2)


def fit_compiles_in_the_first_steps_only(figures: Figures) -> None:
    """A fit of fixed shapes under the monitor."""
    monitor = CompileMonitor(report=False)
    trainer(callbacks=[monitor]).fit(Classifier(), loader())
    totals = monitor.ledger.totals_of("fit")
    figures["compilations"] = totals.counts.compilations
    figures["after the third step"] = totals.late.compilations
    expect(totals.num_steps == 24, f"the monitor saw {totals.num_steps} steps, expected 24")
    expect(
        totals.late.compilations == 0,
        f"{totals.late.compilations} compilations after the third step, expected 0",
    )


def fit_in_bfloat16(figures: Figures) -> None:
    """bf16-mixed learns as float32 does, roughly."""
    modules = {precision: Classifier() for precision in ("bf16-mixed", "32-true")}
    for precision, module in modules.items():
        trainer(precision=precision).fit(module, loader())
    last = {name: float(module.losses[-1]) for name, module in modules.items()}
    first = float(modules["32-true"].losses[0])
    figures["first loss"], figures["last losses"] = first, last
    expect(last["bf16-mixed"] < 0.8 * first, f"bf16-mixed did not learn: {first:.3g} became {last}")
    expect(
        abs(last["bf16-mixed"] - last["32-true"]) < 0.1 * first,
        f"bf16-mixed ends elsewhere than 32-true: {last}",
    )
    dtypes = {parameter.dtype for parameter in modules["bf16-mixed"].parameters()}
    expect(dtypes == {torch.float32}, f"the weights are {dtypes}, expected float32")


def fit_by_replay(figures: Figures) -> None:
    """Forward and backward of training steps as graphs."""
    modules = [Classifier(), Classifier()]
    graphs = HPUGraphCallback(stages=("fit",), targets=["net"])
    trainer().fit(modules[0], loader())
    trainer(callbacks=[graphs]).fit(modules[1], loader())
    figures["captures"], figures["replays"] = graphs.stats.captures, graphs.stats.replays
    expect(graphs.stats.replays > 0, "no training step was replayed")
    _compare(figures, modules[1], modules[0], 1e-2)


def predict_by_replay(figures: Figures) -> None:
    """A prediction whose last batch is smaller."""
    module = Classifier()
    data = loader(rows=61)
    expected = trainer("cpu").predict(copy.deepcopy(module), data)
    graphs = HPUGraphCallback()
    found = trainer(callbacks=[graphs]).predict(module, data)
    assert expected is not None
    assert found is not None
    figures["captures"], figures["replays"] = graphs.stats.captures, graphs.stats.replays
    figures["padded calls"] = graphs.stats.padded_calls
    rows = [torch.cat(batches).cpu() for batches in (found, expected)]  # type: ignore[arg-type]
    expect_close(figures, "logits", rows[0], rows[1], 2e-2)
    counts = (graphs.stats.captures, graphs.stats.padded_calls)
    expect(counts == (1, 1), f"captures and padded calls are {counts}, expected (1, 1)")


def checkpoints(figures: Figures) -> None:
    """An unbroken run against one that was saved after two epochs and resumed."""
    unbroken, first, resumed = Classifier(), Classifier(), Classifier()
    trainer().fit(unbroken, loader())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.ckpt"
        run = trainer(max_epochs=2)
        run.fit(first, loader())
        run.save_checkpoint(path)
        state = torch.load(path, weights_only=False)["state_dict"]
        places = {str(value.device) for value in state.values()}
        figures["devices in the file"], figures["bytes"] = sorted(places), path.stat().st_size
        expect(places == {"cpu"}, f"the file's tensors lie on {places}, expected cpu")
        trainer().fit(resumed, loader(), ckpt_path=path, weights_only=False)
    for name, value in resumed.state_dict().items():
        expect_close(figures, name, value, unbroken.state_dict()[name], 1e-6)
