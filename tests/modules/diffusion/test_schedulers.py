"""Every listed scheduler: stock's images, one capture, no host read in the loop."""

from __future__ import annotations

import diffusers
import pytest
from modules.diffusion.pipelines import scheduler, stable_diffusion, unconditional
from modules.diffusion.sampling import (
    FROM_NUMPY,
    PROMPTS,
    assert_images,
    generators,
    graphs,
    predict,
    reads_between_replays,
    reads_of,
    recorded,
    sampled,
    sampler,
    stock,
)
from modules.diffusion.test_families import FAMILIES, ours, rows_for

pytestmark = [pytest.mark.filterwarnings(each) for each in FROM_NUMPY]

LISTED = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc_3": ("UniPCMultistepScheduler", {"solver_order": 3}),
}


def pipeline(name):
    cls, config = LISTED[name]
    pipe = stable_diffusion()
    pipe.scheduler = scheduler(cls, **config)
    return pipe


@pytest.mark.parametrize("name", LISTED)
def test_against_stock(name):
    expected = stock(pipeline(name), 3, prompt=PROMPTS[:3], num_inference_steps=6)
    module = sampler(pipeline(name), batch_size=2, num_inference_steps=6)
    callback = graphs()
    found, events = recorded(module, PROMPTS[:3], callback)
    assert_images(found, expected, 1e-5 if name == "ddim" else 1e-4)
    assert callback.stats.per_target["unet"].captures == 1
    assert callback.stats.per_target["unet"].replays == 11
    assert sum(event.kind == "capture_begin" for event in events) == 2  # the denoiser, the decoder
    assert module.stats.scheduler_host_reads == 0
    # The last images of a batch go to the host between two batches, and that is all.
    assert [event.kind for event in reads_between_replays(events)] == ["d2h"]


@pytest.mark.parametrize("name", [name for name in LISTED if name != "euler_karras"])
@pytest.mark.parametrize("family", ["stable_diffusion_xl", "img2img", "inpaint", "pixart"])
def test_of_other_families_against_stock(family, name):
    """Image to image begins in the middle of the schedule."""
    cls, config = LISTED[name]
    arguments, shared = FAMILIES[family][1](2), FAMILIES[family][2]
    pipe = FAMILIES[family][0]()
    pipe.scheduler = scheduler(cls, **config)
    expected = stock(pipe, 2, num_inference_steps=5, **arguments, **shared)
    module = ours(family, batch_size=2, num_inference_steps=5, scheduler=scheduler(cls, **config))
    callback = graphs()
    found, events = recorded(module, rows_for(family, 2), callback)
    assert_images(found, expected, 1e-4)
    assert callback.stats.per_target[module.hpu_graph_targets[0]].captures == 1
    assert module.stats.scheduler_host_reads == 0
    assert not reads_between_replays(events)


@pytest.mark.parametrize("name", LISTED)
def test_reads_do_not_grow_with_the_steps(name):
    """Op by op too, and no step compiles what an earlier one has not."""
    reads = []
    for steps in (6, 12):
        module = sampler(pipeline(name), batch_size=2, num_inference_steps=steps)
        _, events = recorded(module, PROMPTS[:2])
        reads.append(reads_of(events))
    assert reads[0] == reads[1]
    assert not [event for event in events if event.kind == "compile"]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_ddim_with_eta(eta, batch_size):
    arguments = {"prompt": PROMPTS[:3], "eta": eta}
    expected = stock(pipeline("ddim"), 3, **arguments)
    module = sampler(pipeline("ddim"), batch_size=batch_size, eta=eta)
    assert_images(sampled(module, PROMPTS[:3], graphs()), expected, 1e-5)


@pytest.mark.parametrize(
    ("cls", "name"), [("DDPMPipeline", "DDPMScheduler"), ("DDIMPipeline", "DDIMScheduler")]
)
def test_unconditional_pipelines_with_noise(cls, name):
    options = {"eta": 1.0} if cls == "DDIMPipeline" else {}
    make = lambda: unconditional(getattr(diffusers, cls), name)  # noqa: E731
    expected = stock(make(), 5, batch_size=5, **options)
    found = sampled(sampler(make(), batch_size=2, **options), range(5), graphs())
    assert_images(found, expected, 1e-5)


def test_another_scheduler_works_and_its_reads_are_told_once():
    class Reading(diffusers.DDIMScheduler):
        def step(self, model_output, timestep, sample, **kwargs):
            if model_output.abs().max() > 1e6:
                raise AssertionError
            return super().step(model_output, timestep, sample, **kwargs)

    def make():
        pipe = stable_diffusion()
        pipe.scheduler = Reading.from_config(pipe.scheduler.config)
        return pipe

    expected = stock(make(), 4, prompt=PROMPTS[:4])
    module = sampler(make(), batch_size=1)
    with pytest.warns(UserWarning, match="Reading reads device tensors on the host") as caught:
        found = sampled(module, PROMPTS[:4], loader_batch=2)
    (message,) = [str(w.message) for w in caught if "reads device tensors" in str(w.message)]
    assert "4 times in the 4 steps of the first batch" in message
    assert "test_schedulers.py:" in message
    assert module.stats.scheduler_host_reads == 4
    assert_images(found, expected, 1e-5)


@pytest.mark.parametrize(
    "cls",
    ["HeunDiscreteScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler"],
)
def test_schedulers_that_are_not_listed(cls):
    pipe = stable_diffusion()
    pipe.scheduler = scheduler(cls)
    expected = stock(pipe, 2, prompt=PROMPTS[:2])
    pipe.scheduler = scheduler(cls)
    callback = graphs()
    found = sampled(sampler(pipe, batch_size=2), PROMPTS[:2], callback)
    assert_images(found, expected, 1e-4)
    assert callback.stats.per_target["unet"].captures == 1


def test_the_scheduler_by_name_and_as_an_object():
    expected = stock(pipeline("euler"), 2, prompt=PROMPTS[:2])
    for given in ("EulerDiscreteScheduler", scheduler("EulerDiscreteScheduler")):
        module = sampler(stable_diffusion(), batch_size=2, scheduler=given)
        assert_images(sampled(module, PROMPTS[:2]), expected, 1e-4)


def test_the_scheduler_is_left_as_it_was():
    pipe = stable_diffusion()
    attributes = set(vars(pipe.scheduler))
    module = sampler(pipe, batch_size=2)
    found = predict(module, PROMPTS[:2])["images"]
    assert set(vars(pipe.scheduler)) <= attributes | {"_step_index", "_begin_index"}
    assert not pipe.unet._forward_pre_hooks
    # The module is on the CPU again, and the pipeline is a stock pipeline on the CPU.
    again = pipe(
        PROMPTS[:2], generator=generators([0, 1]), num_inference_steps=4, output_type="np"
    ).images
    assert abs(again - found).max() < 1e-5
