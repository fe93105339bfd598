"""What a sampler refuses, and how pipelines are loaded and put together."""

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
    vae,
)
from modules.diffusion.sampling import (
    FROM_NUMPY,
    PROMPTS,
    assert_images,
    generators,
    sampled,
    sampler,
    stock,
)

from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.diffusion import DiffusionSampler

pytestmark = [pytest.mark.filterwarnings(each) for each in FROM_NUMPY]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more, but it is 0"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number of 1 or more"),
        ({"num_images_per_prompt": -1}, "num_images_per_prompt must be .* but it is -1"),
        ({"num_inference_steps": True}, "num_inference_steps must be .* but it is True"),
        ({"eta": -0.1}, r"eta must be a number from 0 \(DDIM\) to 1 \(DDPM\), but it is -0.1"),
        ({"eta": float("nan")}, "eta must be a number"),
        ({"eta": 1.5}, "eta must be a number from 0 .* to 1 .*, but it is 1.5"),
        ({"seed": 1.5}, "seed must be a whole number, but it is 1.5"),
        ({"seed": None}, "seed must be a whole number, but it is None"),
        ({"seed": "12"}, "seed must be a whole number, but it is '12'"),
        ({"seed": [1, 2.5]}, "seed must be a whole number, but it is 2.5"),
        ({"seed": 2**64}, r"seed must be from -2\*\*63 to 2\*\*64 - 1, but it is 18446744073"),
        ({"output_type": "jpeg"}, "output_type must be one of 'pil', 'np', 'pt', 'latent'"),
        ({"height": 12}, "height is a multiple of 8 pixels, but height is 12. Use 8 or 16"),
        ({"width": 7}, "width is a multiple of 8 pixels, but width is 7. Use 8 or 8"),
        ({"call_options": {"strenght": 1}}, "StableDiffusionPipeline takes no 'strenght'. What"),
        ({"call_options": {"generator": 1}}, "'generator', which DiffusionSampler passes itself. "),
        ({"call_options": {"eta": 1}}, "Give it to DiffusionSampler by that name"),
        ({"scheduler": "FastScheduler"}, "scheduler must be a scheduler.*but it is 'FastSch"),
        ({"pipeline_class": "MyPipeline"}, "pipeline_class is 'MyPipeline', but diffusers .* has"),
        ({"pipeline_class": "DiTPipeline"}, "DiTPipeline, but the pipeline is a loaded StableDiff"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(ConfigurationError, match=message):
        DiffusionSampler(stable_diffusion(), **options)


def test_sizes_of_the_families():
    for make, multiple in (
        (stable_diffusion_3, 4),
        (flux, 4),
        (pixart, 4),
        (stable_diffusion_xl, 8),
    ):
        height = 3 * multiple - 1
        message = f"height is a multiple of {multiple} pixels, but height is {height}"
        with pytest.raises(ConfigurationError, match=message):
            DiffusionSampler(make(), height=height)
    with pytest.raises(ConfigurationError, match="DDPMPipeline takes no 'height'"):
        DiffusionSampler(unconditional(), height=8)
    with pytest.raises(ConfigurationError, match="DDPMPipeline takes no 'negative_prompt'"):
        DiffusionSampler(unconditional(), negative_prompt="bad")
    with pytest.raises(ConfigurationError, match="'latent' asks for what a VAE decodes, but DDPM"):
        DiffusionSampler(unconditional(), output_type="latent")
    with pytest.raises(ConfigurationError, match="FluxPipeline takes no 'eta'"):
        DiffusionSampler(flux(), eta=0.5)


@pytest.mark.parametrize(
    ("make", "batch", "message"),
    [
        (
            unconditional,
            ["a cat"],
            "DDPMPipeline takes no prompt, but a row has the prompt 'a cat'",
        ),
        (stable_diffusion, [3], "makes images of prompts, but a row has only 'index'"),
        (dit, [{"prompt": "a"}], "makes images of class labels, but a row has only 'prompt'"),
        (dit, [{"prompt": "a", "class_labels": 1}], "takes no prompt.*Pass 'class_labels'"),
        (
            stable_diffusion,
            [{"prompt": "a", "image": torch.ones(3, 16, 16)}],
            "a row has 'image', which StableDiffusionPipeline does not take",
        ),
        (
            stable_diffusion,
            [{"prompt": "a", "height": 12}],
            "a multiple of 8 pixels, but height is 12",
        ),
        (stable_diffusion, [{"prompt": "a", "eta": -1.0}], "eta must be a number"),
        (stable_diffusion, [{"prompt": "a", "num_inference_steps": 0}], "must be a whole number"),
        (stable_diffusion, [{"prompt": "a", "batch_size": 3}], "a row has 'batch_size', which is"),
        (stable_diffusion, [{"prompt": "a", "seed": 1.5}], "the seed of row 0 must be a whole"),
        (stable_diffusion, [{"prompt": "a", "seed": "x"}], "whole number, but it is 'x'"),
        (stable_diffusion, [{"prompt": "a", "seed": [2.5]}], "whole number, but it is 2.5"),
        (stable_diffusion, [{"prompt": "a", "index": 1.5}], "the index of a row must be a whole"),
        (stable_diffusion, [{"prompt": 5}], "a row's prompt must be a string, but it is 5"),
        (stable_diffusion, [{"prompt": ["a", "b"]}], r"but it is \['a', 'b'\]. Make a row of each"),
        (
            stable_diffusion_xl,
            {"prompt": ["a", "b"], "original_size": [torch.tensor([8, 8]), torch.tensor([9, 9])]},
            "the original_size of a batch's rows were taken apart",
        ),
        (
            stable_diffusion,
            [{"prompt": "a", "seed": [1, 2]}],
            "row 0 has 2 seeds, but .*=1 needs 1",
        ),
        (
            stable_diffusion,
            [{"prompt": "a", "generator": generators([1, 2])}],
            "row 0 has 2 generators, but num_images_per_prompt=1 needs 1",
        ),
        (
            stable_diffusion,
            {"prompt": ["a", "b"], "generator": generators([1, 2, 3])},
            "there are 3 generators for a batch of 2 rows",
        ),
    ],
)
def test_rows_that_cannot_be(make, batch, message):
    module = sampler(make(), batch_size=1)
    with pytest.raises(ConfigurationError, match=message):
        module.predict_step(batch)


def test_too_few_seeds():
    module = sampler(stable_diffusion(), seed=[4, 5, 6], num_images_per_prompt=2, batch_size=2)
    with pytest.raises(ConfigurationError, match=r"there are 3 seeds, but row 1 .* at least 4"):
        module.predict_step(PROMPTS[:2])


def test_no_denoiser():
    class Other(diffusers.DiffusionPipeline):
        def __init__(self, vae):
            super().__init__()
            self.register_modules(vae=vae)

        def __call__(self, prompt):
            raise AssertionError

    with pytest.raises(ConfigurationError, match=r"Other has no denoiser.*Its modules are: vae"):
        DiffusionSampler(Other(vae()))
    with pytest.raises(ConfigurationError, match=r"no pipeline is known for the parts 'vae'"):
        DiffusionSampler({"vae": vae()})
    with pytest.raises(ConfigurationError, match=r"must be a path.*but it is of type int"):
        DiffusionSampler(3)


def test_parts():
    makers = (
        stable_diffusion,
        stable_diffusion_xl,
        unconditional,
        lambda: unconditional(diffusers.DDIMPipeline, "DDIMScheduler"),
        stable_diffusion_3,
        flux,
        dit,
        pixart,
    )
    for make in makers:
        pipe = make()
        parts = {name: part for name, part in pipe.components.items() if part is not None}
        assert type(DiffusionSampler(parts).pipeline) is type(pipe)
    parts = dict(stable_diffusion().components)
    img2img = DiffusionSampler(parts, pipeline_class="StableDiffusionImg2ImgPipeline")
    assert isinstance(img2img.pipeline, diffusers.StableDiffusionImg2ImgPipeline)
    with pytest.raises(ConfigurationError, match="StableDiffusionPipeline has no part 'decoder'"):
        DiffusionSampler({**parts, "decoder": 1})
    del parts["tokenizer"], parts["vae"]
    with pytest.raises(ConfigurationError, match="there is no 'vae', 'tokenizer' in what was"):
        DiffusionSampler(parts)


def test_from_a_folder(tmp_path):
    pipe = stable_diffusion()
    pipe.save_pretrained(tmp_path / "saved")
    images = stock(pipe, 2, prompt=PROMPTS[:2])
    module = sampler(str(tmp_path / "saved"), batch_size=2)
    assert type(module.pipeline) is diffusers.StableDiffusionPipeline
    assert_images(sampled(module, PROMPTS[:2]), images, 1e-5)
    module = DiffusionSampler(tmp_path / "saved", pipeline_class="StableDiffusionImg2ImgPipeline")
    assert type(module.pipeline) is diffusers.StableDiffusionImg2ImgPipeline


def test_guidance_of_the_pipelines_own():
    images = stock(stable_diffusion_xl(), 2, prompt=PROMPTS[:2])  # 5.0
    module = sampler(stable_diffusion_xl(), batch_size=2, guidance_scale=None)
    assert_images(sampled(module, PROMPTS[:2]), images, 1e-5)
    other = sampled(sampler(stable_diffusion_xl(), batch_size=2), PROMPTS[:2])  # 7.5
    assert abs(other - images).max() > 1e-4


def test_prompts_that_are_cut():
    long = "a red cat on the small house of the blue dog on a house"
    module = sampler(stable_diffusion(), batch_size=2)
    with pytest.warns(UserWarning, match="longer than the 12 tokens that the pipeline") as caught:
        module.predict_step([long, "a cat"])
        module.predict_step([long])
    (message,) = [str(w.message) for w in caught if "longer than" in str(w.message)]
    assert message.endswith("cut off: 'dog on a house'.")

    call_options = {
        "max_sequence_length": 8,
        "clean_caption": False,
        "use_resolution_binning": False,
    }
    module = sampler(pixart(), batch_size=1, call_options=call_options)
    with pytest.warns(
        UserWarning, match=r"the 8 tokens .* of its tokenizer. .* off: 'of the blue dog on a house'"
    ):
        module.predict_step([long])


def test_a_pipeline_without_images():
    class Silent(diffusers.DDPMPipeline):
        def __call__(self, batch_size=1, generator=None):
            return diffusers.utils.BaseOutput(audios=torch.zeros(batch_size, 1))

    module = DiffusionSampler(Silent(unconditional().unet, scheduler("DDPMScheduler")))
    with pytest.raises(ConfigurationError, match="Silent gives BaseOutput, which has no images"):
        module.predict_step([0])
