"""Runs that the tests of the sampler share: ours through a trainer, and the stock pipeline."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from callbacks.runs import trainer
from torch.utils.data import DataLoader

from lightning_gaudi import HPUGraphCallback, emulator
from lightning_gaudi.modules.diffusion import DiffusionSampler

# PyTorch's own, from schedulers that make arrays of CPU tensors.
FROM_NUMPY = (
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:__array_wrap__ must accept context:DeprecationWarning",
)
PROMPTS = ["a red cat", "the small dog", "house", "blue", "a dog on a house", "the cat", "of red"]
STEPS = 4


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def stock(pipeline, number, *, seed=0, **arguments):
    """Images of the stock pipeline on the CPU, an array (number, height, width, channels)."""
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": STEPS, "output_type": "np", **arguments}
    seeds = range(seed, seed + number)
    return pipeline(generator=generators(seeds), **arguments).images


def sampler(pipeline, **options):
    options = {"num_inference_steps": STEPS, "output_type": "np", **options}
    return DiffusionSampler(pipeline, **options)


def predict(module, rows, *callbacks, loader_batch=None, **options):
    """The predictions of all batches, joined: a dict of lists."""
    loader = DataLoader(rows, batch_size=loader_batch or len(rows), collate_fn=list)
    batches = trainer(*callbacks, **options).predict(module, loader)
    return {name: [item for batch in batches for item in batch[name]] for name in batches[0]}


def sampled(module, rows, *callbacks, **options):
    """Images of ours, as `stock` gives them."""
    return np.stack(predict(module, rows, *callbacks, **options)["images"])


def recorded(module, rows, *callbacks, **options):
    """Images of ours and the events of the run."""
    with emulator.record() as events:
        images = sampled(module, rows, *callbacks, **options)
    return images, events


def reads_of(events):
    """How often the host waited for a device value or copied one, by cause and line."""
    return Counter(
        (event.kind, event.cause) for event in events if event.kind in ("host_read", "d2h")
    )


def reads_between_replays(events):
    """Reads from the first run of a graph of the denoiser to the last: inside the loop."""
    runs = [i for i, e in enumerate(events) if e.kind in ("capture_end", "replay")]
    inside = events[runs[0] : runs[-1]]
    return [event for event in inside if event.kind in ("host_read", "d2h")]


def graphs():
    return HPUGraphCallback()


def assert_images(found, expected, tolerance):
    assert found.shape == expected.shape
    assert expected.std() > 0.01, "constant images prove nothing"
    assert len({image.tobytes() for image in expected}) == len(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
