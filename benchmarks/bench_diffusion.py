"""What `DiffusionSampler` makes of a stock pipeline of Diffusers.

    LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 python benchmarks/bench_diffusion.py --help

Images per second are those of ``trainer.predict`` with `HPUGraphCallback` on the emulated HPU,
after its first batches, held against the stock pipeline on the CPU with the same weights, prompts
and batch size, batch by batch in turns. Before that the images are compared. Captures and host
reads are counted by the emulated HPU, with the stock pipeline moved there beside them.
The models are small and their weights random: this says what the host pays, not how fast a card is.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

USAGE = "LIGHTNING_GAUDI_EMULATOR=1 PT_HPU_LAZY_MODE=1 python benchmarks/bench_diffusion.py"
if (os.environ.get("LIGHTNING_GAUDI_EMULATOR"), os.environ.get("PT_HPU_LAZY_MODE")) != ("1", "1"):
    sys.exit(f"This measures sampling on the emulated HPU in lazy mode. Run it as: {USAGE}")
os.environ["HF_HUB_OFFLINE"] = "1"

import lightning as L
import numpy as np
import torch
from diffusion_models import small_stable_diffusion, small_unconditional
from measure import Row, report
from torch.utils.data import DataLoader

from lightning_gaudi import GaudiStrategy, HPUGraphCallback, emulator
from lightning_gaudi.modules.diffusion import DiffusionSampler
from lightning_gaudi.runtime import loading

STEPS = 10
BATCH_SIZE = 4
WARM_UP = 2
NUM_BATCHES = 15
# Of this thread's own time, so that other programs on the machine do not count.
CLOCK = time.thread_time
STOCK_CPU = "the stock pipeline on the CPU"
STOCK_HPU = "the stock pipeline on the emulated HPU"
PROMPTS = ["a red cat", "the small dog", "a house", "blue"]


class Model:
    """A pipeline of a kind, and the same with equal weights as often as it is asked for.

    Args:
        name: What reports call it.
        make: Makes the pipeline.
        has_prompts: Whether it takes prompts.
    """

    def __init__(self, name: str, make: Callable[[], Any], *, has_prompts: bool) -> None:
        self.name = name
        self.make = make
        self._has_prompts = has_prompts

    def rows(self, number: int) -> list[Any]:
        """Rows for the sampler."""
        if self._has_prompts:
            return [PROMPTS[place % len(PROMPTS)] for place in range(number)]
        return [{"index": place} for place in range(number)]

    def stock(self, pipeline: Any, first: int, steps: int = STEPS) -> np.ndarray:
        """One batch of the stock pipeline, from image `first` on."""
        places = range(first, first + BATCH_SIZE)
        generators = [torch.Generator().manual_seed(place) for place in places]
        condition: dict[str, Any] = {"batch_size": BATCH_SIZE}
        if self._has_prompts:
            condition = {"prompt": [PROMPTS[place % len(PROMPTS)] for place in places]}
        images: np.ndarray = pipeline(
            **condition, generator=generators, num_inference_steps=steps, output_type="np"
        ).images
        return images

    def stock_pipeline(self) -> Any:
        """The stock pipeline on the CPU."""
        pipeline = self.make()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def sampler(self, steps: int = STEPS) -> DiffusionSampler:
        """Ours, with the same weights."""
        return DiffusionSampler(
            self.make(), num_inference_steps=steps, batch_size=BATCH_SIZE, output_type="np"
        )


def predict(
    model: Model, module: DiffusionSampler, number: int, *callbacks: L.Callback
) -> tuple[np.ndarray, HPUGraphCallback]:
    """Images of `number` batches, and the callback that captured."""
    graphs = HPUGraphCallback()
    graphs.print_table = lambda: None  # type: ignore[method-assign]
    trainer = L.Trainer(
        accelerator="hpu",
        devices=1,
        strategy=GaudiStrategy(),
        callbacks=[graphs, *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    rows = model.rows(number * BATCH_SIZE)
    found = trainer.predict(module, DataLoader(rows, batch_size=BATCH_SIZE, collate_fn=list))
    assert found is not None
    return np.stack([image for batch in found for image in batch["images"]]), graphs


class Turns(L.Callback):
    """Has the stock pipeline make a batch after each of ours, and times both.

    Attributes:
        ours: Seconds of each batch of ours, Lightning's loop included.
        theirs: Seconds of each batch of the stock pipeline.
    """

    def __init__(self, model: Model) -> None:
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self._model = model
        self._pipeline = model.stock_pipeline()
        self._started = CLOCK()

    def on_predict_batch_end(self, *args: Any) -> None:
        """Note our time, then take theirs."""
        self.ours.append(CLOCK() - self._started)
        started = CLOCK()
        self._model.stock(self._pipeline, 0)
        self._started = CLOCK()
        self.theirs.append(self._started - started)


def check_images(model: Model) -> None:
    """Compare one batch of ours with the stock pipeline's.

    Raises:
        AssertionError: They differ, or are constant.
    """
    ours, _ = predict(model, model.sampler(), 1)
    theirs = model.stock(model.stock_pipeline(), 0)
    assert theirs.std() > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def speed_row(model: Model, how: str = "") -> Row:
    """Images per second against the stock pipeline on the CPU, in turns."""
    turns = Turns(model)
    predict(model, model.sampler(), WARM_UP + NUM_BATCHES, turns)
    ours, theirs = (
        statistics.median(times[WARM_UP:]) / BATCH_SIZE for times in (turns.ours, turns.theirs)
    )
    return Row(
        what=f"{model.name}: images per second, {STEPS} steps, batch {BATCH_SIZE}{how}",
        against=STOCK_CPU,
        measured=theirs / ours,
        unit="times as fast",
        target=1.0,
        better="higher",
        detail=f"{1 / ours:.1f} against {1 / theirs:.1f} images/s",
    )


def inductor_rows(name: str) -> list[Row]:
    """The speed of captures that Inductor has compiled, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        subprocess.run(
            [sys.executable, __file__, "--only", name, "--speed", "--json", str(path)],
            env={**os.environ, "LIGHTNING_GAUDI_EMULATOR_COMPILE": "1"},
            stdout=subprocess.DEVNULL,
            check=False,  # a target that is not met is told by the row
        )
        if not path.is_file():
            raise RuntimeError("the benchmark through Inductor failed; its error is above.")
        return [Row(**row) for row in json.loads(path.read_text())["rows"]]


def reads_per_step(run: Callable[[int], object]) -> float:
    """Host reads and copies to the host that one more denoising step brings."""
    found = []
    for steps in (STEPS, 2 * STEPS):
        with emulator.record() as events:
            run(steps)
        found.append(sum(event.kind in ("host_read", "d2h") for event in events))
    return (found[1] - found[0]) / STEPS


def count_rows(model: Model) -> list[Row]:
    """Captures, and host reads per step, with the stock pipeline's beside them."""
    module = model.sampler()
    _, callback = predict(model, module, 2)
    captures = callback.stats.per_target[module.hpu_graph_targets[0]].captures

    # Moved to the device, nothing captured, in inference mode. By default Diffusers would write
    # PT_HPU_MAX_COMPOUND_OP_SIZE=1 into the environment, and later graphs would be split.
    on_device = model.stock_pipeline().to("hpu", hpu_migration=False)
    with torch.inference_mode():
        theirs = reads_per_step(lambda steps: model.stock(on_device, 0, steps))
    ours = reads_per_step(lambda steps: predict(model, model.sampler(steps), 1))
    return [
        Row(
            what=f"{model.name}: captures of the denoiser, 2 batches of {STEPS} steps",
            against=STOCK_HPU,
            measured=captures,
            unit="captures",
            target=1,
            detail="it captures nothing",
        ),
        Row(
            what=f"{model.name}: host reads of device tensors per denoising step",
            against=STOCK_HPU,
            measured=ours,
            unit="reads",
            target=0,
            detail=f"{theirs:.1f} there",
        ),
    ]


MODELS = {
    "sd": Model("small Stable Diffusion, DDIM", small_stable_diffusion, has_prompts=True),
    "unet": Model("small unconditional U-Net, DDPM", small_unconditional, has_prompts=False),
}


def main() -> int:
    """Run the benchmarks; the exit status is 1 where a target is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--only", help=f"a comma-separated choice of {', '.join(MODELS)}")
    parser.add_argument("--speed", action="store_true", help="only the speed, in this process")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(MODELS)
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(MODELS)}")
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    loading.load("lazy")
    rows: list[Row] = []
    for name in names:
        model = MODELS[name]
        check_images(model)
        if arguments.speed:
            is_compiled = os.environ.get("LIGHTNING_GAUDI_EMULATOR_COMPILE") == "1"
            rows.append(speed_row(model, ", through Inductor" if is_compiled else ""))
        else:
            rows += [speed_row(model), *inductor_rows(name), *count_rows(model)]
    return 0 if report("Sampling images", rows, arguments.json) else 1


if __name__ == "__main__":
    sys.exit(main())
