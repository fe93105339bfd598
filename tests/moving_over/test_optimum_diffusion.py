"""The guide's rows for Diffusers pipelines: the code of each runs and does what it says."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from modules.diffusion.pipelines import stable_diffusion
from modules.diffusion.sampling import (
    FROM_NUMPY,
    PROMPTS,
    STEPS,
    assert_images,
    reads_between_replays,
    sampled,
    stock,
)
from moving_over.rows import code_of, evaluated, rows_under
from torch.utils.data import DataLoader
from training import IGNORED_WARNINGS

from lightning_gaudi import HPUGraphCallback, emulator
from lightning_gaudi.modules.diffusion import DiffusionSampler

pytestmark = [
    *IGNORED_WARNINGS,
    *(pytest.mark.filterwarnings(message) for message in FROM_NUMPY),
]
TABLE = "Diffusers pipelines:"
FewSteps = partial(DiffusionSampler, num_inference_steps=STEPS, output_type="np")


def row(argument: str, **names: Any) -> Any:
    """What the code of an argument's row gives; a sampler takes few steps."""
    return evaluated(code_of(TABLE, argument), DiffusionSampler=FewSteps, **names)


def test_each_argument_of_the_table_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    arguments = {argument for row in rows_under(TABLE) for argument in row.code(0)}
    assert arguments <= tested, arguments - tested


def test_use_hpu_graphs() -> None:
    graphs = row("use_hpu_graphs")
    found = sampled(FewSteps(stable_diffusion(), batch_size=2), PROMPTS[:4], graphs)
    assert_images(found, stock(stable_diffusion(), 4, prompt=PROMPTS[:4]), 1e-4)
    # Two batches of four steps each, with one graph.
    unet = graphs.stats.per_target["unet"]
    assert (unet.captures, unet.captures + unet.replays) == (1, 2 * STEPS)


def test_num_images_per_prompt() -> None:
    module = row("num_images_per_prompt", pipeline=stable_diffusion())
    found = sampled(module, PROMPTS[:2])
    prompts = [prompt for prompt in PROMPTS[:2] for _ in range(2)]
    assert_images(found, stock(stable_diffusion(), 4, prompt=prompts), 1e-4)


def test_batch_size() -> None:
    module = row("batch_size", pipeline=stable_diffusion())
    rows: list[int] = []
    module.unet.register_forward_pre_hook(lambda unet, inputs: rows.append(inputs[0].shape[0]))
    found = sampled(module, PROMPTS[:3])
    assert_images(found, stock(stable_diffusion(), 3, prompt=PROMPTS[:3]), 1e-4)
    # Two images with their unconditional halves; the second batch is filled up.
    assert rows == [2 * 2] * 2 * STEPS


def test_GaudiDDIMScheduler() -> None:
    module = row("GaudiDDIMScheduler", pipeline=stable_diffusion(name="PNDMScheduler"))
    assert type(module.pipeline.scheduler) is diffusers.DDIMScheduler
    graphs = HPUGraphCallback()
    with emulator.record() as events:
        found = sampled(module, PROMPTS[:1], graphs)
    pipeline = stable_diffusion(name="PNDMScheduler")
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    assert_images(found, stock(pipeline, 1, prompt=PROMPTS[:1]), 1e-4)
    assert reads_between_replays(events) == []


def test_bf16_full_eval() -> None:
    module = FewSteps(stable_diffusion())
    dtypes: set[torch.dtype] = set()
    module.unet.register_forward_pre_hook(lambda unet, inputs: dtypes.add(inputs[0].dtype))
    run = row("bf16_full_eval")
    (batch,) = run.predict(module, DataLoader(PROMPTS[:1], batch_size=1, collate_fn=list))
    assert dtypes == {torch.bfloat16}
    (expected,) = stock(stable_diffusion(), 1, prompt=PROMPTS[:1])
    assert abs(batch["images"][0] - expected).mean() < 0.05
