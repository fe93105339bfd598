"""Every family of pipelines against the stock pipeline on the CPU."""

from __future__ import annotations

import diffusers
import pytest
import torch
from modules.diffusion.pipelines import (
    dit,
    flux,
    pixart,
    scheduler,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
)
from modules.diffusion.sampling import (
    FROM_NUMPY,
    PROMPTS,
    STEPS,
    assert_images,
    graphs,
    reads_between_replays,
    recorded,
    sampled,
    sampler,
    stock,
)
from PIL import Image

pytestmark = [pytest.mark.filterwarnings(each) for each in FROM_NUMPY]

T5 = {"max_sequence_length": 12}
PIXART = {**T5, "clean_caption": False, "use_resolution_binning": False}


def pictures(number, size=16):
    """Random pictures."""
    generator = torch.Generator().manual_seed(11)
    return [
        Image.fromarray(
            torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8).numpy()
        )
        for _ in range(number)
    ]


def masks(number, size=16):
    """Masks that mark the left part, wider from picture to picture."""
    found = []
    for place in range(number):
        mask = Image.new("L", (size, size), 0)
        mask.paste(255, (0, 0, 4 + 4 * place, size))
        found.append(mask)
    return found


def prompts(number):
    return {"prompt": PROMPTS[:number], "guidance_scale": 5.0}


# Each: how the pipeline is made, what its stock call takes for so many images, and which of that
# are the same for all images (the others come with the rows).
FAMILIES = {
    "stable_diffusion": (stable_diffusion, prompts, {}),
    "stable_diffusion_xl": (stable_diffusion_xl, prompts, {}),
    "ddpm": (unconditional, lambda number: {"batch_size": number}, {}),
    "ddim": (
        lambda: unconditional(diffusers.DDIMPipeline, "DDIMScheduler"),
        lambda number: {"batch_size": number},
        {},
    ),
    "img2img": (
        lambda: stable_diffusion(diffusers.StableDiffusionImg2ImgPipeline),
        lambda number: {**prompts(number), "image": pictures(number)},
        {"strength": 0.6},
    ),
    "inpaint": (
        lambda: stable_diffusion(diffusers.StableDiffusionInpaintPipeline),
        lambda number: {
            **prompts(number),
            "image": pictures(number),
            "mask_image": masks(number),
        },
        {"strength": 0.8, "height": 16, "width": 16},
    ),
    "inpaint_9": (
        lambda: stable_diffusion(diffusers.StableDiffusionInpaintPipeline, in_channels=9),
        lambda number: {
            **prompts(number),
            "image": pictures(number),
            "mask_image": masks(number),
        },
        {"height": 16, "width": 16},
    ),
    "stable_diffusion_3": (stable_diffusion_3, prompts, T5),
    "flux": (flux, prompts, {**T5, "height": 16, "width": 16}),
    "dit": (
        dit,
        lambda number: {"class_labels": list(range(number)), "guidance_scale": 5.0},
        {},
    ),
    "pixart": (pixart, prompts, PIXART),
}
ROW_FIELDS = ("prompt", "image", "mask_image", "class_labels")


def ours(family, **options):
    make, arguments, shared = FAMILIES[family]
    options = {**{n: v for n, v in arguments(1).items() if n == "guidance_scale"}, **options}
    sizes = {n: v for n, v in shared.items() if n in ("height", "width")}
    others = {n: v for n, v in shared.items() if n not in sizes}
    return sampler(make(), call_options=others, **sizes, **options)


def rows_for(family, number):
    arguments = FAMILIES[family][1](number)
    columns = {name: arguments[name] for name in ROW_FIELDS if name in arguments}
    if not columns:
        return [{"index": i} for i in range(number)]
    return [{name: column[i] for name, column in columns.items()} for i in range(number)]


def expected_of(family, number, **more):
    make, arguments, shared = FAMILIES[family]
    return stock(make(), number, **arguments(number), **shared, **more)


@pytest.mark.parametrize("family", FAMILIES)
def test_against_stock(family):
    """One capture, no read in the loop; the batch straddles prompts and the last is filled."""
    callback = graphs()
    module = ours(family, batch_size=2)
    found, events = recorded(module, rows_for(family, 3), callback)
    assert_images(found, expected_of(family, 3), 1e-5)
    denoiser, *decoder = module.hpu_graph_targets
    assert callback.stats.per_target[denoiser].captures == 1
    assert callback.stats.per_target[denoiser].eager_calls == 0
    assert [callback.stats.per_target[name].captures for name in decoder] == [1] * len(decoder)
    assert module.stats.scheduler_host_reads == 0
    # From the first step to the last only the images of the first batch are copied to the host,
    # and T5's encoder looks at the masks of two lists of prompts.
    between = [event.kind for event in reads_between_replays(events)]
    assert between == ["d2h"] + ["host_read"] * (2 if family == "pixart" else 0)
    assert (module.stats.images, module.stats.filler_images) == (3, 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_any_batch_size(family, batch_size):
    found = sampled(ours(family, batch_size=batch_size), rows_for(family, 3), graphs())
    assert_images(found, expected_of(family, 3), 1e-5)


@pytest.mark.parametrize("family", ["stable_diffusion", "ddpm", "img2img", "flux"])
def test_op_by_op(family):
    """Without the callback, a step boundary ends each denoising step."""
    found, events = recorded(ours(family, batch_size=3), rows_for(family, 3))
    assert_images(found, expected_of(family, 3), 1e-5)
    steps = 2 if family == "img2img" else STEPS  # strength 0.6 starts in the middle
    marks = [event.kind for event in events].count("mark_step")
    assert marks == steps + 3  # the stage's start, the step's end and the stage's end


@pytest.mark.parametrize("batch_size", range(1, 8))
def test_seven_images(batch_size):
    """DDIM without noise: 7 images at any batch size, prompt-major."""
    expected = expected_of("stable_diffusion", 7)
    module = ours("stable_diffusion", batch_size=batch_size)
    assert_images(sampled(module, PROMPTS, graphs()), expected, 1e-5)
    assert module.stats.images == 7
    assert module.stats.filler_images == -7 % batch_size


def test_all_arguments_reach_the_denoiser():
    """A guidance embedding, cross-attention arguments and SDXL's conditions."""
    make = lambda: stable_diffusion(time_cond_proj_dim=8)  # noqa: E731
    arguments = {"prompt": PROMPTS[:2], "guidance_scale": 3.0}
    plain = stock(make(), 2, **arguments)
    assert abs(stock(make(), 2, prompt=PROMPTS[:2], guidance_scale=9.0) - plain).max() > 1e-3
    module = sampler(make(), batch_size=2, guidance_scale=3.0)
    assert_images(sampled(module, PROMPTS[:2], graphs()), plain, 1e-5)

    seen = []

    class Processor(diffusers.models.attention_processor.AttnProcessor):
        def __call__(self, attn, hidden_states, *args, strength=1.0, **kwargs):
            seen.append(strength)
            return super().__call__(attn, hidden_states, *args, **kwargs) * strength

    def processed():
        pipe = stable_diffusion()
        pipe.unet.set_attn_processor(Processor())
        return pipe

    more = {"cross_attention_kwargs": {"strength": 0.5}}
    expected = stock(processed(), 2, prompt=PROMPTS[:2], **more)
    assert abs(stock(processed(), 2, prompt=PROMPTS[:2]) - expected).max() > 1e-3
    seen.clear()
    module = sampler(processed(), batch_size=2, call_options=more)
    assert_images(sampled(module, PROMPTS[:2], graphs()), expected, 1e-5)
    assert set(seen) == {0.5}

    module = sampler(stable_diffusion_xl(), batch_size=2, call_options={"original_size": (8, 32)})
    expected = stock(
        stable_diffusion_xl(), 2, prompt=PROMPTS[:2], guidance_scale=7.5, original_size=(8, 32)
    )
    other = stock(stable_diffusion_xl(), 2, prompt=PROMPTS[:2], guidance_scale=7.5)
    assert abs(other - expected).max() > 1e-4
    assert_images(sampled(module, PROMPTS[:2], graphs()), expected, 1e-5)


def refiner():
    parts = stable_diffusion_xl().components
    return diffusers.StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)


def test_a_schedule_in_two_parts():
    """SDXL's base stops where its refiner goes on."""
    base, rest = {"denoising_end": 0.5}, {"denoising_start": 0.5}
    shared = {"prompt": PROMPTS[:3], "num_inference_steps": 6, "guidance_scale": 5.0}
    latents = stock(stable_diffusion_xl(), 3, output_type="latent", **shared, **base)
    expected = stock(refiner(), 3, image=latents, **shared, **rest)

    options = {"batch_size": 2, "num_inference_steps": 6, "guidance_scale": 5.0}
    first = sampler(stable_diffusion_xl(), output_type="latent", call_options=base, **options)
    found = sampled(first, PROMPTS[:3], graphs())
    assert first.hpu_graph_targets == ["unet"]
    assert abs(torch.from_numpy(found) - latents).max() < 1e-4
    assert first.stats.denoising_steps == 2 * 3
    second = sampler(refiner(), call_options=rest, **options)
    rows = [
        {"prompt": prompt, "image": torch.from_numpy(latent)}
        for prompt, latent in zip(PROMPTS, found, strict=False)
    ]
    assert_images(sampled(second, rows, graphs()), expected, 1e-4)


def test_stopping_early_and_sampling_again():
    """The user's own callback stops the pipeline; the next batch starts afresh."""

    def stop(pipe, step, timestep, tensors):
        if step == 1:
            pipe._interrupt = True
        return {"latents": tensors["latents"] * 0.9}

    more = {"callback_on_step_end": stop}
    make = lambda: stable_diffusion(name="EulerAncestralDiscreteScheduler")  # noqa: E731
    expected = stock(make(), 3, prompt=PROMPTS[:3], **more)
    assert abs(stock(make(), 3, prompt=PROMPTS[:3]) - expected).max() > 1e-3
    module = sampler(make(), batch_size=1, call_options=more)
    callback = graphs()
    for _ in range(2):
        assert_images(sampled(module, PROMPTS[:3], callback), expected, 1e-5)
    assert module.stats.denoising_steps == 2 * 3 * 2


def test_after_a_failure_everything_is_as_before():
    def fail(pipe, step, timestep, tensors):
        raise KeyError("the user's own")

    pipe = stable_diffusion()
    module = sampler(pipe, batch_size=1, call_options={"callback_on_step_end": fail})
    with pytest.raises(KeyError, match="the user's own"):
        sampled(module, PROMPTS[:1], graphs())
    assert not pipe.unet._forward_pre_hooks
    assert "step" not in vars(pipe.scheduler)
    assert "forward" not in vars(pipe.unet)


def test_a_scheduler_that_moves_its_tables_keeps_them():
    """Stock DDIM moves a table to the device when it adds noise: in each step of inpainting."""
    pipe = stable_diffusion(diffusers.StableDiffusionInpaintPipeline)
    pipe.scheduler = scheduler("DDIMScheduler")
    module = sampler(pipe, batch_size=1, height=16, width=16)
    rows = [{"prompt": "a cat", "image": pictures(1)[0], "mask_image": masks(1)[0]}]
    images = [sampled(module, rows) for _ in range(2)]
    assert (images[0] == images[1]).all()
    assert pipe.scheduler.alphas_cumprod.device.type == "cpu"
