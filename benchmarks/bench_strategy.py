"""What the strategy costs the host in each step of a fit and of a prediction.

    LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 python benchmarks/bench_strategy.py --help

Three loops do the same work on the same emulated device: the ops, ``mark_step`` after backward,
optimizer step and prediction, the same batches, already on the device.

- *bare*: a Python loop;
- *stock*: Lightning's Trainer with its own ``SingleDeviceStrategy``, which knows no ``mark_step``,
  so that the module calls it in its hooks, as a user without our strategy would have to;
- *ours*: the Trainer with ``GaudiStrategy``, which calls it by itself.

What Lightning costs is each less the bare loop. The target is on the two differences: ours over
stock's. Before anything is timed, the three must give the same weights and predictions.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

USAGE = "LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 python benchmarks/bench_strategy.py"
if (os.environ.get("LIGHTNING_GAUDI_EMULATOR"), os.environ.get("PT_HPU_LAZY_MODE")) != ("1", "1"):
    sys.exit(f"This measures the strategy on the emulated HPU in lazy mode. Run it as: {USAGE}")

import habana_frameworks.torch.core as htcore
import lightning as L
import torch
from encoders import batch as text_batch
from encoders import tiny_bert
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from measure import Row, report
from torch import Tensor, nn

from lightning_gaudi import GaudiStrategy

TARGET = 1.1
_NUM_WARMUP = 20
# Of this thread's own time, so that other programs on the machine do not count.
_clock = time.thread_time

Batch = Any
"""A tensor, or a dict of arguments."""


class StockAccelerator(Accelerator):
    """The least that Lightning asks for, so that its own strategy runs on ``hpu:0``."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing to set up."""

    def teardown(self) -> None:
        """Nothing to undo."""

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        """Devices, as given."""
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        """The one device."""
        return [torch.device("hpu", 0)]

    @staticmethod
    def auto_device_count() -> int:
        """One device."""
        return 1

    @staticmethod
    def is_available() -> bool:
        """It is emulated, so it is there."""
        return True

    @staticmethod
    def name() -> str:
        """No name of a registry."""
        return "stock_hpu"


class Module(L.LightningModule):
    """A network whose loss is the mean square of what it gives.

    Args:
        network: The network.
        marks: Whether it calls ``mark_step`` in its hooks.
    """

    def __init__(self, network: nn.Module, marks: bool) -> None:
        super().__init__()
        self.network = network
        self.marks = marks

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a batch."""
        return self(batch).square().mean()

    def forward(self, batch: Batch) -> Tensor:
        """What the network gives."""
        found: Tensor = self.network(**batch) if isinstance(batch, dict) else self.network(batch)
        return found

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Nothing is logged: that costs both Trainers the same."""
        return self.loss(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> None:
        """Nothing is kept."""
        self(batch)
        if self.marks:
            htcore.mark_step()

    def on_after_backward(self) -> None:
        """Between backward and optimizer."""
        if self.marks:
            htcore.mark_step()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """After the optimizer's step."""
        if self.marks:
            htcore.mark_step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD, which has the least to do itself."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Repeated(torch.utils.data.IterableDataset[Any]):
    """The same batch, a number of times, on the device already."""

    def __init__(self, batch: Batch, number: int) -> None:
        self.batch, self.number = batch, number

    def __iter__(self) -> Any:
        return iter([self.batch] * self.number)


class Timer(L.Callback):
    """Notes when each step has ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """A step of a fit."""
        self.ends.append(_clock())

    def on_predict_batch_end(self, *args: Any) -> None:
        """A step of a prediction."""
        self.ends.append(_clock())


def steps_of(ends: list[float]) -> list[float]:
    """Seconds of each step after the warm-up, from the end of the one before to its own."""
    return [later - earlier for earlier, later in itertools.pairwise(ends[_NUM_WARMUP - 1 :])]


def run_trainer(
    kind: str, stage: str, network: nn.Module, batch: Batch, number: int
) -> list[float]:
    """Seconds of each step under a Trainer, ``"stock"`` or ``"ours"``."""
    timer = Timer()
    if kind == "stock":
        accelerator = StockAccelerator()
        placed: dict[str, Any] = {
            "accelerator": accelerator,
            "strategy": SingleDeviceStrategy("hpu:0"),
        }
    else:
        placed = {"accelerator": "hpu", "strategy": GaudiStrategy()}
    trainer = L.Trainer(
        **placed,
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[timer],
    )
    module = Module(network, marks=kind == "stock")
    data = torch.utils.data.DataLoader(Repeated(batch, number), batch_size=None)
    if stage == "fit":
        trainer.fit(module, data)
    else:
        trainer.predict(module, data, return_predictions=False)
    return steps_of(timer.ends)


def run_bare(stage: str, network: nn.Module, batch: Batch, number: int) -> list[float]:
    """Seconds of each step in a loop without Lightning."""
    module = Module(network.to("hpu"), marks=False)
    module.train(stage == "fit")
    optimizer = module.configure_optimizers()
    ends: list[float] = []
    with torch.inference_mode(stage == "predict"):
        for _ in range(number):
            if stage == "predict":
                module(batch)
            else:
                optimizer.zero_grad()
                module.loss(batch).backward()
                htcore.mark_step()
                optimizer.step()
            htcore.mark_step()
            ends.append(_clock())
    module.cpu()
    return steps_of(ends)


KINDS: dict[str, Callable[[str, nn.Module, Batch, int], list[float]]] = {
    "bare": run_bare,
    "stock": lambda *arguments: run_trainer("stock", *arguments),
    "ours": lambda *arguments: run_trainer("ours", *arguments),
}


def check(make: Callable[[], nn.Module], batch: Batch) -> None:
    """Check that all three train to the same weights.

    Raises:
        AssertionError: They do not.
    """
    trained = []
    for run in KINDS.values():
        network = make()
        torch.manual_seed(1)  # of dropout
        run("fit", network, batch, _NUM_WARMUP + 1)
        trained.append([parameter.detach().cpu() for parameter in network.parameters()])
    assert any(not torch.equal(a, b) for a, b in zip(trained[0], make().parameters(), strict=True))
    for other in trained[1:]:
        for ours, theirs in zip(trained[0], other, strict=True):
            torch.testing.assert_close(ours, theirs)


def bench(what: str, make: Callable[[], nn.Module], batch: Batch, number: int) -> list[Row]:
    """A network's rows, for a fit and for a prediction."""
    check(make, batch)
    network, rows = make(), []
    for stage in ("fit", "predict"):
        found: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(_ROUNDS):
            for kind, run in KINDS.items():
                found[kind] += run(stage, network, batch, number)
        # Of all rounds together: one in which the machine was slow is outvoted.
        bare, stock, ours = (statistics.median(found[kind]) * 1e6 for kind in KINDS)
        rows.append(
            Row(
                what=f"{stage}, {what}: host time a step over a bare loop",
                against="stock SingleDeviceStrategy's",
                measured=(ours - bare) / (stock - bare),
                unit="of its",
                target=TARGET,
                detail=f"{ours - bare:.0f} us against {stock - bare:.0f} us; "
                f"the bare loop takes {bare:.0f} us",
            )
        )
    return rows


_ROUNDS = 15


def mlp() -> nn.Module:
    """4 features to 3."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def bench_mlp() -> list[Row]:
    """So small that Lightning is most of the step."""
    return bench("an MLP", mlp, torch.ones(4, 4).to("hpu"), 220)


def bench_bert() -> list[Row]:
    """A step as small ones really are."""
    batch = {name: value.to("hpu") for name, value in text_batch(4, 16).items()}
    return bench("a tiny BERT", lambda: tiny_bert().train(), batch, 60)


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {"mlp": bench_mlp, "bert": bench_bert}


def main() -> int:
    """Run the benchmarks; the exit status is 1 where a target is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--only", help=f"a comma-separated choice of {', '.join(BENCHMARKS)}")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = [row for name in names for row in BENCHMARKS[name]()]
    return 0 if report("The strategy's host time a step", rows, arguments.json) else 1


if __name__ == "__main__":
    sys.exit(main())
