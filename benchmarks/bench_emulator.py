"""What the emulated HPU costs the host, and what replaying a graph gives back.

    make bench
    LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 python benchmarks/bench_emulator.py --help

Times are a CPU's; nothing here says how fast a card is. The rows through Inductor run in a process
of their own, because ``LIGHTNING_GAUDI_EMULATOR_COMPILE=1`` changes what a capture does.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

USAGE = "LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 python benchmarks/bench_emulator.py"
if (os.environ.get("LIGHTNING_GAUDI_EMULATOR"), os.environ.get("PT_HPU_LAZY_MODE")) != ("1", "1"):
    sys.exit(f"This measures the emulated HPU in lazy mode. Run it as: {USAGE}")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import habana_frameworks.torch.core as htcore
import lightning as L
import torch
from encoders import Batch, Encoder, batch, minilm, tiny_bert
from habana_frameworks.torch.hpu import HPUGraph, graph
from measure import Row, in_turns, report
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from lightning_gaudi import GaudiStrategy, HPUGraphCallback, emulator

MODELS: dict[str, tuple[Callable[[], Encoder], Batch]] = {
    "tiny BERT": (tiny_bert, batch(1, 16)),
    "MiniLM": (minilm, batch(1, 32)),
}
PLAIN = "plain PyTorch on the CPU"


class _CountOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def bench_add() -> list[Row]:
    """Host time of one emulated ``add``, accounting and flush included."""
    length = 200
    host = torch.randn(4, 4), torch.randn(4, 4)
    device = tuple(t.to("hpu") for t in host)

    def run_host() -> None:
        for _ in range(length):
            host[0].add(host[1])

    def run_device() -> None:
        for _ in range(length):
            device[0].add(device[1])
        htcore.mark_step()

    with torch.no_grad():
        plain, emulated = (s / length * 1e6 for s in in_turns([run_host, run_device], calls=10))
    return [
        Row(
            what="host time per emulated add",
            against="the plain CPU op",
            measured=emulated - plain,
            unit="us over it",
            target=8,
            detail=f"{emulated:.2f} us against {plain:.2f} us",
        )
    ]


def bench_bert_ops() -> list[Row]:
    """Host time of each op of a BERT forward, run op by op."""
    host = tiny_bert()
    device = copy.deepcopy(host).to("hpu")
    inputs = batch(1, 16)
    on_device = {name: tensor.to("hpu") for name, tensor in inputs.items()}

    def run_device() -> None:
        device(**on_device)
        htcore.mark_step()

    with torch.no_grad():
        with _CountOps() as counter:
            device(**on_device)
        plain, emulated = in_turns([lambda: host(**inputs), run_device])
    over = (emulated - plain) / counter.number * 1e6
    return [
        Row(
            what="host time per emulated op of a BERT forward",
            against="the plain CPU forward",
            measured=over,
            unit="us over it",
            target=16,
            detail=f"{counter.number} ops; {emulated * 1e3:.2f} ms against {plain * 1e3:.2f} ms",
        )
    ]


def replay_row(name: str, target: float, through: str = "") -> Row:
    """Replay of a captured forward against the same forward on the CPU; results are compared.

    Raises:
        AssertionError: The replay computed something else.
    """
    build, inputs = MODELS[name]
    host = build()
    device = copy.deepcopy(host).to("hpu")
    on_device = {key: tensor.to("hpu") for key, tensor in inputs.items()}
    captured = HPUGraph()
    with torch.inference_mode(False), torch.no_grad():
        with graph(captured):
            out: Tensor = device(**on_device)
        other = batch(1, inputs["input_ids"].shape[1], seed=5)
        for key, tensor in other.items():
            on_device[key].copy_(tensor)
        captured.replay()
        torch.testing.assert_close(out.cpu(), host(**other), rtol=1e-4, atol=1e-5)
        plain, replayed = in_turns([lambda: host(**other), captured.replay])
    return Row(
        what=f"replay of {name}, batch 1{through}",
        against=PLAIN,
        measured=plain / replayed,
        unit="times as fast",
        target=target,
        better="higher",
        detail=f"{replayed * 1e3:.2f} ms against {plain * 1e3:.2f} ms",
    )


def bench_replay() -> list[Row]:
    """Replay, op by op on the captured buffers."""
    return [replay_row("tiny BERT", 1.5), replay_row("MiniLM", 1.1)]


def bench_inductor() -> list[Row]:
    """Replay of captures that Inductor has compiled, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        subprocess.run(
            [sys.executable, __file__, "--only", "inductor-here", "--json", str(path)],
            env={**os.environ, "LIGHTNING_GAUDI_EMULATOR_COMPILE": "1"},
            stdout=subprocess.DEVNULL,
            check=False,  # a target that is not met is told by the row
        )
        if not path.is_file():
            raise RuntimeError("the benchmark through Inductor failed; its error is above.")
        return [Row(**row) for row in json.loads(path.read_text())["rows"]]


def bench_inductor_here() -> list[Row]:
    """The rows of `bench_inductor`, in a process where captures are compiled."""
    through = ", through Inductor"
    return [replay_row("tiny BERT", 1.8, through), replay_row("MiniLM", 1.15, through)]


class _Predictor(L.LightningModule):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder(input_ids, attention_mask)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self(**batch)


class _Stopwatch(L.Callback):
    """Seconds per batch, after the first ones."""

    warm_up = 10

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_predict_batch_start(self, *args: Any) -> None:
        self.starts.append(time.perf_counter())

    def seconds(self) -> float:
        """The mean over the batches that count."""
        counted = self.starts[self.warm_up :]
        return (counted[-1] - counted[0]) / (len(counted) - 1)


def predict_row(name: str) -> Row:
    """``trainer.predict`` with `HPUGraphCallback` against stock Lightning on the CPU."""
    build, inputs = MODELS[name]
    rows = 150 if name == "tiny BERT" else 40
    data = DataLoader([inputs] * rows, batch_size=None)  # type: ignore[arg-type]
    module = _Predictor(build())
    options: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "devices": 1,
    }
    times: dict[str, list[float]] = {"cpu": [], "hpu": []}
    results: dict[str, Any] = {}
    for _ in range(5):
        for accelerator, found in times.items():
            stopwatch = _Stopwatch()
            ours = {"strategy": GaudiStrategy()} if accelerator == "hpu" else {}
            graphs = [HPUGraphCallback()] if accelerator == "hpu" else []
            trainer = L.Trainer(
                accelerator=accelerator, callbacks=[stopwatch, *graphs], **ours, **options
            )
            results[accelerator] = trainer.predict(module, data)
            found.append(stopwatch.seconds())
    for ours_row, stock_row in zip(results["hpu"], results["cpu"], strict=True):
        torch.testing.assert_close(ours_row, stock_row, rtol=1e-4, atol=1e-5)
    plain, replayed = (sorted(found)[len(found) // 2] for found in times.values())
    return Row(
        what=f"predict of {name} through Trainer and callback, batch 1",
        against="stock Lightning on the CPU",
        measured=plain / replayed,
        unit="times as fast",
        target=1.2,
        better="higher",
        detail=f"{replayed * 1e3:.2f} ms a batch against {plain * 1e3:.2f} ms",
    )


def bench_predict() -> list[Row]:
    """Prediction through Lightning."""
    return [predict_row("tiny BERT"), predict_row("MiniLM")]


class _CompilationsByStep(L.Callback):
    """Compilations inside each step; what runs between epochs is counted apart."""

    def __init__(self) -> None:
        self.in_steps: list[int] = []
        self._before = 0

    def step_starts(self) -> None:
        """The module's step begins; hooks before it belong to what is between steps."""
        self._before = emulator.event_counts()["compile"]

    def on_train_batch_end(self, *args: Any) -> None:
        self.in_steps.append(emulator.event_counts()["compile"] - self._before)

    def on_predict_batch_end(self, *args: Any) -> None:
        self.in_steps.append(emulator.event_counts()["compile"] - self._before)


class _Fitter(_Predictor):
    def __init__(self, encoder: Encoder, counter: _CompilationsByStep) -> None:
        super().__init__(encoder)
        self.counter = counter

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.counter.step_starts()
        return super().predict_step(batch, batch_idx)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.counter.step_starts()
        loss = self(**batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def bench_compilations() -> list[Row]:
    """Compilations of a fit and a predict of fixed shapes once they are warm."""
    data = DataLoader([batch(4, 16, seed=i) for i in range(20)], batch_size=None)  # type: ignore[arg-type]
    rows = []
    for stage in ("fit", "predict"):
        counter = _CompilationsByStep()
        trainer = L.Trainer(
            accelerator="hpu",
            devices=1,
            strategy=GaudiStrategy(),
            callbacks=[counter],
            max_epochs=2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        before = emulator.event_counts()["compile"]
        getattr(trainer, stage)(_Fitter(tiny_bert(), counter), data)
        outside = emulator.event_counts()["compile"] - before - sum(counter.in_steps)
        rows.append(
            Row(
                what=f"compilations in steps after the third, {stage} of fixed shapes",
                against="",
                measured=sum(counter.in_steps[3:]),
                unit=f"in {len(counter.in_steps) - 3} steps",
                target=0,
                detail=f"{sum(counter.in_steps[:3])} in the first three, {outside} between steps",
            )
        )
    return rows


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "add": bench_add,
    "bert": bench_bert_ops,
    "replay": bench_replay,
    "inductor": bench_inductor,
    "predict": bench_predict,
    "compilations": bench_compilations,
}
HERE_ONLY = {"inductor-here": bench_inductor_here}


def main() -> int:
    """Run the benchmarks; the exit status is 1 where a target is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--only", help=f"a comma-separated choice of {', '.join(BENCHMARKS)}")
    arguments = parser.parse_args()
    known = BENCHMARKS | HERE_ONLY
    names = arguments.only.split(",") if arguments.only else list(BENCHMARKS)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    warnings.filterwarnings("ignore")
    rows = [row for name in names for row in known[name]()]
    return 0 if report("The emulated HPU on the host", rows, arguments.json) else 1


if __name__ == "__main__":
    sys.exit(main())
