"""In a run: throughput, the bar, precision, ranks, the trainer's other callbacks."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from callbacks.runs import trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from modules.diffusion.pipelines import flux, stable_diffusion, unconditional
from modules.diffusion.sampling import (
    FROM_NUMPY,
    PROMPTS,
    assert_images,
    generators,
    graphs,
    predict,
    sampled,
    sampler,
    stock,
)
from torch.utils.data import DataLoader

from lightning_gaudi.callbacks import PredictionOrder, PredictionWriter
from lightning_gaudi.errors import HostReadError
from lightning_gaudi.modules.diffusion import sampler as sampling

pytestmark = [pytest.mark.filterwarnings(each) for each in FROM_NUMPY]


class Notes(Logger):
    """Keeps what is logged."""

    name, version = "notes", 0

    def __init__(self):
        super().__init__()
        self.metrics: dict = {}

    def log_metrics(self, metrics, step=None):
        self.metrics.update(metrics)

    def log_hyperparams(self, *args, **kwargs):
        pass


def test_images_per_second_are_of_real_images_after_the_first_batch():
    class Slow(Callback):
        def on_predict_batch_end(self, *args):
            time.sleep(0.1)

    module = sampler(unconditional(), batch_size=3)
    notes = Notes()
    started = time.perf_counter()
    predict(module, range(7), Slow(), loader_batch=2, logger=notes)
    seconds = time.perf_counter() - started
    stats = module.stats
    assert (stats.images, stats.filler_images, stats.batches) == (7, 5, 4)
    assert stats.timed_images == 5  # the first batch had two
    assert 0.4 < stats.seconds < seconds
    assert stats.images_per_second == pytest.approx(5 / stats.seconds)
    assert notes.metrics["sampling/images_per_second"] == stats.images_per_second
    assert notes.metrics["sampling/images"] == 7
    assert notes.metrics["sampling/scheduler_host_reads"] == 0

    predict(module, range(4), loader_batch=2)  # its first batch captures again
    assert (stats.images, stats.timed_images) == (11, 7)


def test_the_device_is_waited_for_before_and_after_what_is_timed(monkeypatch):
    waits = []

    def wait():
        waits.append(module.stats.is_timing)
        time.sleep(0.2)

    monkeypatch.setattr(sampling, "hpu", SimpleNamespace(synchronize=wait))
    module = sampler(unconditional(), batch_size=2)
    predict(module, range(6), loader_batch=2)
    assert waits == [False, True]
    assert module.stats.seconds > 0.2  # the last wait is part of it
    assert module.stats.timed_images == 4


def test_one_batch_has_no_rate():
    module = sampler(unconditional(), batch_size=3)
    notes = Notes()
    predict(module, range(3), logger=notes)
    assert module.stats.images_per_second is None
    assert "sampling/images_per_second" not in notes.metrics


@pytest.mark.parametrize(
    ("show", "with_bar", "expected"),
    [
        (None, True, {"disable": False, "position": 1}),
        (None, False, {"disable": True, "position": 0}),
        (True, False, {"disable": False, "position": 0}),
        (False, True, {"disable": True, "position": 1}),
    ],
)
def test_the_bar_over_steps(show, with_bar, expected, capfd):
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append(dict(pipe._progress_bar_config))
        return {}

    pipe = stable_diffusion()
    pipe.set_progress_bar_config(ncols=60)
    options = {"show_steps": show, "call_options": {"callback_on_step_end": look}}
    module = sampler(pipe, batch_size=1, **options)
    callbacks = [TQDMProgressBar()] if with_bar else []
    predict(module, PROMPTS[:1], *callbacks, enable_progress_bar=with_bar)
    assert seen[0] == {"ncols": 60, "leave": False, "desc": "Denoising", **expected}
    assert pipe._progress_bar_config == {"ncols": 60}  # the user's again
    assert ("Denoising" in capfd.readouterr().err) is (not expected["disable"])


@pytest.mark.parametrize("make", [stable_diffusion, unconditional])
def test_the_bar_over_steps_in_lightnings_rich_display(make):
    pipe = make()
    seen = []
    bar = RichProgressBar()
    step = pipe.scheduler.step

    def look(*args, **kwargs):
        seen.extend(
            (task.description, task.completed, task.total, task.visible)
            for task in bar.progress.tasks[1:]
        )
        return step(*args, **kwargs)

    pipe.scheduler.step = functools.wraps(step)(look)
    module = sampler(pipe, batch_size=1)
    rows = PROMPTS[:2] if make is stable_diffusion else range(2)
    predict(module, rows, bar, enable_progress_bar=True)
    assert seen == [("Denoising", done, 4, True) for done in (0, 1, 2, 3)] * 2
    assert [task.visible for task in bar.progress.tasks] == [True, False]
    assert "progress_bar" not in vars(pipe)
    assert pipe.scheduler.step.__wrapped__ == step  # the user's own attribute is back


def test_the_users_own_setting_of_the_bar_wins():
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append(pipe._progress_bar_config["disable"])
        return {}

    module = sampler(pipe, show_steps=True, call_options={"callback_on_step_end": look})
    predict(module, PROMPTS[:1])
    assert set(seen) == {True}


@pytest.mark.parametrize("make", [stable_diffusion, flux])
def test_bfloat16(make):
    """As the stock pipeline in bfloat16; its scheduler's tables are float32 there too."""
    options = {"height": 16, "width": 16}
    pipe = make().to(torch.bfloat16)
    images = stock(pipe, 2, prompt=PROMPTS[:2], guidance_scale=5.0, **options)
    module = sampler(make(), batch_size=2, guidance_scale=5.0, **options)
    found = sampled(module, PROMPTS[:2], graphs(), precision="bf16-true")
    assert_images(found, images, 1e-2)
    assert torch.get_default_dtype() == torch.float32


def test_bfloat16_leaves_numbers_of_the_pipeline_in_float32():
    """The guidance embedding is made of a number that bfloat16 would round to 2.297."""

    def make():
        pipe = stable_diffusion(time_cond_proj_dim=8)
        torch.nn.init.normal_(pipe.unet.time_embedding.cond_proj.weight, std=5.0)
        return pipe

    images = stock(make().to(torch.bfloat16), 2, prompt=PROMPTS[:2], guidance_scale=3.3)
    module = sampler(make(), batch_size=2, guidance_scale=3.3)
    found = sampled(module, PROMPTS[:2], graphs(), precision="bf16-true")
    assert_images(found, images, 1e-2)


def test_mixed_precision():
    images = stock(stable_diffusion(), 2, prompt=PROMPTS[:2])
    callback = graphs()
    found = sampled(
        sampler(stable_diffusion(), batch_size=1), PROMPTS[:2], callback, precision="bf16-mixed"
    )
    assert callback.stats.per_target["unet"].captures == 1
    assert 1e-5 < abs(found - images).max() < 0.1


def test_weights_that_are_replaced_between_runs():
    pipe = stable_diffusion()
    module = sampler(pipe, batch_size=2)
    callback = graphs()
    first = sampled(module, PROMPTS[:2], callback)
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.5)
    second = sampled(module, PROMPTS[:2], callback)
    images = stock(pipe, 2, prompt=PROMPTS[:2])
    assert abs(first - second).max() > 1e-3
    assert_images(second, images, 1e-5)


def test_a_denoiser_that_reads_the_host_is_refused():
    pipe = stable_diffusion()
    forward = pipe.unet.mid_block.forward

    def reading(hidden, *args, **kwargs):
        return forward(hidden * float(hidden.abs().max() > 0), *args, **kwargs)

    pipe.unet.mid_block.forward = reading
    with pytest.raises(HostReadError, match=r"cannot capture 'unet' .*test_run\.py:"):
        predict(sampler(pipe, batch_size=1), PROMPTS[:1], graphs())
    assert not pipe.unet._forward_pre_hooks
    # A finished run leaves the stock pipeline as it was.
    arguments = {"num_inference_steps": 2, "output_type": "np"}
    assert pipe(PROMPTS[:1], generator=generators([0]), **arguments).images.shape == (1, 16, 16, 3)


SCRIPT = """
import logging, sys, warnings
warnings.simplefilter("ignore")
import lightning as L
import torch
from torch.utils.data import DataLoader
from lightning_gaudi import GaudiStrategy, HPUGraphCallback
from modules.diffusion.pipelines import stable_diffusion
from modules.diffusion.sampling import PROMPTS, sampler

torch.set_num_threads(1)
pipe = stable_diffusion(name="EulerAncestralDiscreteScheduler")
module = sampler(pipe, batch_size=2)
callback = HPUGraphCallback()
run = L.Trainer(
    accelerator="hpu", strategy=GaudiStrategy(), devices=2, logger=False, callbacks=[callback],
    enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
)
found = run.predict(module, DataLoader(PROMPTS[:5], batch_size=2, collate_fn=list))
assert callback.stats.per_target["unet"].captures == 1, callback.stats
torch.save(found, f"{sys.argv[1]}/rank{run.global_rank}.pt")
"""


def test_several_images_of_a_prompt_in_the_datas_order(tmp_path):
    """`PredictionOrder` and `PredictionWriter` put the images of a row together."""
    pipe = stable_diffusion()
    images = stock(pipe, 6, prompt=[prompt for prompt in PROMPTS[:3] for _ in range(2)])
    for output_type in ("np", "pt"):
        module = sampler(pipe, batch_size=2, num_images_per_prompt=2, output_type=output_type)
        loader = DataLoader(PROMPTS[:3], batch_size=2, sampler=[2, 0, 1], collate_fn=list)
        writer = PredictionWriter(tmp_path / f"{output_type}.jsonl", ["prompt", "seed"])
        rows = trainer(writer, PredictionOrder()).predict(module, loader)
        assert [row["prompt"] for row in rows] == [[prompt] * 2 for prompt in PROMPTS[:3]]
        assert [row["seed"] for row in rows] == [[0, 1], [2, 3], [4, 5]]
        found = np.stack([np.asarray(image) for row in rows for image in row["images"]])
        found = found if output_type == "np" else found.transpose(0, 2, 3, 1)
        assert_images(found, images, 1e-4)
        lines = (tmp_path / f"{output_type}.jsonl").read_text().splitlines()
        assert [json.loads(line)["seed"] for line in lines] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.slow
def test_two_ranks_make_the_images_of_one(tmp_path):
    """Seeds follow the row in the data set, not the rank."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    tests = Path(__file__).parent.parent.parent
    environment = {
        **os.environ,
        "LIGHTNING_GAUDI_EMULATOR_DEVICES": "2",
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
    }
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    batches = [
        batch
        for rank in range(2)
        for batch in torch.load(tmp_path / f"rank{rank}.pt", weights_only=False)
    ]
    pipe = stable_diffusion(name="EulerAncestralDiscreteScheduler")
    images = stock(pipe, 5, prompt=PROMPTS[:5])
    seen = []
    for batch in batches:
        assert batch["seed"] == batch["index"]
        for index, image in zip(batch["index"], batch["images"], strict=True):
            np.testing.assert_allclose(image, images[index], atol=1e-4)
            seen.append(index)
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert images.std() > 0.01


def test_the_loader_is_not_moved_to_the_device():
    """Pictures stay on the host until the pipeline has looked at them."""
    module = sampler(stable_diffusion(), batch_size=1)
    seen = []
    step = module.predict_step
    module.predict_step = lambda batch, batch_idx: seen.append(batch) or step(["a cat"])
    trainer().predict(module, DataLoader([{"image": torch.ones(3)}], batch_size=1))
    assert seen[0]["image"].device.type == "cpu"


def test_a_run_that_failed_is_not_timed_on():
    class Failing(Callback):
        def on_predict_batch_end(self, trainer, module, outputs, batch, batch_idx, loader=0):
            if batch_idx == 1:
                raise KeyError("stop")

    module = sampler(unconditional(), batch_size=2)
    with pytest.raises(KeyError, match="stop"):
        predict(module, range(6), Failing(), loader_batch=2)
    time.sleep(0.5)
    predict(module, range(4), loader_batch=2)
    assert 0 < module.stats.seconds < 0.5
    assert module.stats.timed_images == 2
