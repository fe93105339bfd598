"""Numbers of a scheduler stay on the host, for as long as its steps may move them."""

from __future__ import annotations

import json

import diffusers
import numpy as np
import pytest
import torch
from modules.diffusion.pipelines import stable_diffusion
from modules.diffusion.sampling import (
    FROM_NUMPY,
    PROMPTS,
    predict,
    reads_of,
    recorded,
    sampler,
)
from PIL import Image

from lightning_gaudi.modules.diffusion.host_reads import HostReadCounter
from lightning_gaudi.modules.diffusion.schedule import HostNumbers
from lightning_gaudi.modules.diffusion.settings import described

pytestmark = [pytest.mark.filterwarnings(each) for each in FROM_NUMPY]


@pytest.mark.parametrize("name", ["DDIMScheduler", "UniPCMultistepScheduler"])
def test_sampling_leaves_the_settings_as_they_were(name):
    """Else a second run would take its images for others."""
    module = sampler(stable_diffusion(name=name), batch_size=1)
    told = [module.predict_step(PROMPTS[:1])["settings"] for _ in range(2)]
    assert told[0] == told[1]


def test_values_are_described_by_what_they_are():
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    values = [
        *(torch.arange(4.0), torch.arange(4), torch.arange(4.0).reshape(2, 2), torch.zeros(4)),
        *(torch.tensor(1, dtype=torch.bfloat16), np.arange(4), picture, Image.fromarray(picture)),
        *(Image.fromarray(picture[..., 0]), Image.fromarray(picture).resize((1, 4))),
        *({"scale": 1.0}, [1, 2], "ab", True, 1.5, np.int64(3)),
    ]
    found = [described(value) for value in values]
    assert len({json.dumps(each) for each in found}) == len(values)
    assert found[-6:] == [{"scale": 1.0}, [1, 2], "ab", True, 1.5, 3]
    assert described(torch.arange(8.0)[::2]) == described(torch.tensor([0.0, 2.0, 4.0, 6.0]))
    assert described(lambda: 0) is None


def test_numbers_stay_and_other_tensors_go():
    image = torch.ones(2, 2, dtype=torch.bfloat16, device="hpu")
    number, many = torch.tensor(1.5, dtype=torch.float64), torch.ones(2)
    with HostNumbers() as mode:
        for kept, dtype in (
            (number.to("hpu"), torch.float64),
            (number.to(image.device), torch.float64),
            (number.to(device="hpu", dtype=torch.float32), torch.float32),
            (number.to("hpu", torch.float32), torch.float32),
            (number.to(torch.float32), torch.float32),
            (number.to(image), torch.bfloat16),
            (torch.ones((), device="hpu"), torch.float32),
            (torch.tensor(3, device="hpu"), torch.int64),
        ):
            assert (kept.device.type, kept.dtype, kept.dim()) == ("cpu", dtype, 0)
        assert mode.num_kept == 8
        for gone in (many.to("hpu"), torch.ones(1, device="hpu"), torch.tensor([3], device="hpu")):
            assert gone.device.type == "hpu"
        assert image.sum().cpu().to("hpu").device.type == "cpu"
    assert number.to("hpu").device.type == "hpu"


def test_what_counts_as_a_read():
    x, mask = torch.ones(3, device="hpu"), torch.tensor([True, False, True], device="hpu")
    host = torch.ones(3)
    reads = [
        lambda: x.sum().item(),
        lambda: bool(mask.any()),
        lambda: x.cpu(),
        lambda: host.copy_(x),
        lambda: x[mask],
        lambda: torch.nonzero(x),
        lambda: torch.equal(x, x),
    ]
    for number, read in enumerate(reads):
        for inference in (False, True):
            with torch.inference_mode(inference), HostReadCounter() as counter:
                read()
            assert counter.num_reads == 1, number
    with HostReadCounter() as counter:
        _ = (
            x + 1,
            x * torch.tensor(2.0),
            x[1:],
            x[torch.tensor([0, 1]).to("hpu")],
            host.sum().item(),
        )
        _ = host.to("hpu"), x.to(torch.float64), torch.where(mask, x, 0 * x)
    assert counter.num_reads == 0


class Late(diffusers.DDIMScheduler):
    """Moves a number to the device and reads it there, but not in its first steps."""

    def step(self, model_output, timestep, sample, **kwargs):
        if timestep < 500:
            factor = torch.tensor(1.0).to(sample.device)
            sample = sample * factor.item()
        return super().step(model_output, timestep, sample, **kwargs)


def late(**options):
    pipe = stable_diffusion()
    pipe.scheduler = Late.from_config(pipe.scheduler.config)
    return sampler(pipe, batch_size=1, **options)


def test_an_interrupted_first_batch_does_not_decide():
    batches = []

    def stop_the_first(pipe, step, timestep, tensors):
        if step == 0:
            batches.append(timestep)
        pipe._interrupt = len(batches) == 1
        return {}

    module = late(call_options={"callback_on_step_end": stop_the_first})
    _, events = recorded(module, PROMPTS[:3])
    assert module.stats.denoising_steps == 1 + 4 + 4
    assert reads_of(events)["host_read", "_local_scalar_dense"] == 0
    assert reads_of(events)["host_read", "item"] == 0
    assert module._plain_scheduler is None


@pytest.mark.parametrize(
    ("name", "is_watched"), [("DDIMScheduler", False), ("UniPCMultistepScheduler", True)]
)
def test_steps_that_move_no_numbers_are_not_watched_for_long(name, is_watched):
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append(pipe.scheduler is not module._plain_scheduler)
        return {}

    pipe = stable_diffusion(name=name)
    module = sampler(pipe, batch_size=1, call_options={"callback_on_step_end": look})
    predict(module, PROMPTS[:2])
    assert seen == [True] * 4 + [is_watched] * 4
