"""Batches, seeds and settings: which image is made from what, and in which order."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from callbacks.runs import trainer
from modules.diffusion.pipelines import stable_diffusion, unconditional
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
from torch import nn
from torch.utils.data import DataLoader

from lightning_gaudi import emulator
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.diffusion import DiffusionSampler
from lightning_gaudi.modules.diffusion.requests import rows_of

pytestmark = [pytest.mark.filterwarnings(each) for each in FROM_NUMPY]


def noisy(**options):
    """A sampler with noise in every step, so that each image has much of its own generator."""
    return sampler(stable_diffusion(name="EulerAncestralDiscreteScheduler"), **options)


def expected(number, prompts, **options):
    pipe = stable_diffusion(name="EulerAncestralDiscreteScheduler")
    return stock(pipe, number, prompt=prompts, **options)


def test_images_of_a_prompt_follow_each_other():
    repeated = [prompt for prompt in PROMPTS[:3] for _ in range(3)]
    module = noisy(num_images_per_prompt=3, batch_size=4, seed=5)
    found = predict(module, PROMPTS[:3], graphs())
    assert_images(np.stack(found["images"]), expected(9, repeated, seed=5), 1e-4)
    assert found["prompt"] == repeated
    assert found["index"] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found["image_number"] == [0, 1, 2] * 3
    assert found["seed"] == list(range(5, 14))
    assert (module.stats.images, module.stats.filler_images) == (9, 3)


@pytest.mark.parametrize("loader_batch", [1, 2, 5])
def test_the_loaders_batches_do_not_matter(loader_batch):
    found = sampled(noisy(batch_size=2), PROMPTS[:5], loader_batch=loader_batch)
    assert_images(found, expected(5, PROMPTS[:5]), 1e-4)


def test_a_shuffled_order_keeps_seeds_with_rows():
    whole = expected(5, PROMPTS[:5])
    loader = DataLoader(PROMPTS[:5], batch_size=2, sampler=[3, 0, 4, 1, 2], collate_fn=list)
    found = trainer().predict(noisy(batch_size=2), loader)
    images = np.concatenate([np.stack(batch["images"]) for batch in found])
    assert [i for batch in found for i in batch["index"]] == [3, 0, 4, 1, 2]
    np.testing.assert_allclose(images, whole[[3, 0, 4, 1, 2]], atol=1e-4)


def test_rows_that_tell_their_index_and_seed():
    rows = [
        {"prompt": PROMPTS[0], "index": 2},
        {"prompt": PROMPTS[1], "seed": 11},
        {"prompt": PROMPTS[2], "seed": 11},
    ]
    rows = [{"index": place + 7, **row} for place, row in enumerate(rows)]
    found = predict(noisy(batch_size=3), rows)
    assert found["index"] == [2, 8, 9]
    assert found["seed"] == [2, 11, 11]
    pipe = stable_diffusion(name="EulerAncestralDiscreteScheduler")
    images = pipe(
        PROMPTS[:3], generator=generators([2, 11, 11]), num_inference_steps=4, output_type="np"
    ).images
    assert_images(np.stack(found["images"]), images, 1e-4)


def test_a_seed_for_each_image_and_generators():
    pipe = stable_diffusion(name="EulerAncestralDiscreteScheduler")
    arguments = {"num_inference_steps": 4, "output_type": "np"}
    images = pipe(PROMPTS[:2], generator=generators([9, 3]), **arguments).images
    assert_images(sampled(noisy(batch_size=2, seed=[9, 3, 4]), PROMPTS[:2]), images, 1e-4)

    batch = {"prompt": PROMPTS[:2], "generator": generators([9, 3])}
    result = noisy(batch_size=3).eval().predict_step(batch)
    assert_images(np.stack(result["images"]), images, 1e-4)
    assert result["seed"] == [None, None]


def test_settings_of_rows():
    """Rows with other settings form batches of their own; the order stays."""
    rows = [
        {"prompt": PROMPTS[0], "num_inference_steps": 3, "name": "first"},
        {"prompt": PROMPTS[1], "negative_prompt": "bad", "guidance_scale": 2.0},
        {"prompt": PROMPTS[2], "num_inference_steps": 3, "height": 8, "width": 24},
        {"prompt": PROMPTS[3], "num_inference_steps": 3, "seed": 1},
    ]
    module = noisy(batch_size=2)
    found = predict(module, rows)
    make = lambda: stable_diffusion(name="EulerAncestralDiscreteScheduler")  # noqa: E731
    for place, row in enumerate(rows):
        options = {name: value for name, value in row.items() if name not in ("name", "seed")}
        image = stock(make(), 1, seed=row.get("seed", place), **options)[0]
        np.testing.assert_allclose(found["images"][place], image, atol=1e-4)
    assert found["images"][2].shape == (8, 24, 3)
    assert found["name"] == ["first", None, None, None]
    assert found["settings"][1] == {
        "num_inference_steps": 4,
        "guidance_scale": 2.0,
        "eta": 0.0,
        "negative_prompt": "bad",
        "pipeline": "StableDiffusionPipeline",
        "scheduler": "EulerAncestralDiscreteScheduler",
        "scheduler_config": found["settings"][0]["scheduler_config"],
    }
    assert module.stats.batches == 3  # the first and the last row go together


def test_a_negative_prompt_for_rows_without():
    rows = [{"prompt": PROMPTS[0]}, {"prompt": PROMPTS[1], "negative_prompt": "blurry"}]
    images = expected(2, PROMPTS[:2], negative_prompt=["bad", "blurry"])
    assert abs(images - expected(2, PROMPTS[:2])).max() > 1e-4
    assert_images(sampled(noisy(batch_size=2, negative_prompt="bad"), rows), images, 1e-4)


def test_rows_with_and_without_a_negative_prompt():
    rows = [{"prompt": PROMPTS[0]}, {"prompt": PROMPTS[1], "negative_prompt": "blurry"}]
    images = [
        expected(2, PROMPTS[:2])[0],
        expected(2, PROMPTS[:2], negative_prompt=["", "blurry"])[1],
    ]
    module = noisy(batch_size=2)
    assert_images(sampled(module, rows), np.stack(images), 1e-4)
    assert module.stats.batches == 2


def test_forms_of_a_batch():
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    assert rows_of(["a", "b"]) == rows
    assert rows_of(("a", "b")) == rows
    assert rows_of("a") == [{"prompt": "a"}]
    assert rows_of({"prompt": ["a", "b"]}) == rows
    assert rows_of({"prompt": "a"}) == [{"prompt": "a"}]
    assert rows_of([{"prompt": "a", "seed": None}, {"prompt": "b"}]) == rows
    assert rows_of({"prompt": ["a", "b"], "seed": torch.tensor([3, 4]), "strength": 0.5}) == [
        {"prompt": "a", "seed": 3, "strength": 0.5},
        {"prompt": "b", "seed": 4, "strength": 0.5},
    ]
    for size in ((8, 32), [(8, 32), (8, 32)]):  # for every row, and a column
        assert rows_of({"prompt": ["a", "b"], "original_size": size}) == [
            {"prompt": "a", "original_size": (8, 32)},
            {"prompt": "b", "original_size": (8, 32)},
        ]
    numbers = [{"index": 3}, {"index": 4}]
    assert rows_of(torch.tensor([3, 4])) == numbers
    assert rows_of([3, 4]) == numbers
    assert rows_of({"index": torch.tensor([3, 4])}) == numbers
    (row, _) = rows_of({"image": torch.ones(2, 3, 4, 4)})
    assert row["image"].shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("batch", "what"),
    [
        (torch.ones(2, 3), r"a tensor of shape \(2, 3\) and torch.float32"),
        ([1.5, "a"], "a list of float, str"),
        (None, "of type NoneType"),
    ],
)
def test_what_is_no_batch(batch, what):
    with pytest.raises(ConfigurationError, match=f"takes a batch of prompts.*{what}"):
        rows_of(batch)


def test_columns_of_different_length():
    with pytest.raises(ConfigurationError, match="'prompt' has 2, 'seed' has 1"):
        rows_of({"prompt": ["a", "b"], "seed": [1]})


class LabelledPipeline(diffusers.DiffusionPipeline):
    """A pipeline of the user's own: a class-conditional U-Net without a VAE."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, class_labels, num_inference_steps=50, generator=None, output_type="pil"):
        shape = (len(class_labels), 1, 8, 8)
        image = diffusers.utils.torch_utils.randn_tensor(
            shape, generator=generator, device=self._execution_device
        )
        labels = torch.tensor(class_labels, device=self._execution_device)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.progress_bar(self.scheduler.timesteps):
            noise = self.unet(image, int(t), class_labels=labels).sample  # a Python number
            image = self.scheduler.step(noise, t, image, generator=generator).prev_sample
        image = (image / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()
        return diffusers.ImagePipelineOutput(images=image)


def test_a_pipeline_of_the_users_own():
    def make():
        torch.manual_seed(12)
        unet = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            num_class_embeds=10,
        )
        nn.init.normal_(unet.class_embedding.weight, std=3.0)
        return LabelledPipeline(unet.eval(), diffusers.DDPMScheduler())

    images = stock(make(), 3, class_labels=[1, 2, 7])
    callback = graphs()
    rows = [{"class_labels": label} for label in (1, 2, 7)]
    found = predict(sampler(make(), batch_size=2), rows, callback)
    assert_images(np.stack(found["images"]), images, 1e-5)
    assert found["class_labels"] == [1, 2, 7]
    assert callback.stats.per_target["unet"].captures == 1  # though the timestep is a number


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_output_types(output_type):
    module = sampler(stable_diffusion(), batch_size=2, output_type=output_type)
    (found,) = trainer(graphs()).predict(module, DataLoader(PROMPTS[:3], batch_size=3))
    images = stock(stable_diffusion(), 3, prompt=PROMPTS[:3], output_type=output_type)
    if output_type == "pil":
        ours = np.stack([np.asarray(image) for image in found["images"]]).astype(int)
        theirs = np.stack([np.asarray(image) for image in images]).astype(int)
        assert abs(ours - theirs).max() <= 1
        assert ours.std() > 1
    elif output_type == "np":
        assert_images(np.stack(found["images"]), images, 1e-5)
    else:
        assert found["images"].device.type == "cpu"
        assert_images(found["images"].numpy(), images.numpy(), 1e-4)


def test_unconditional_images_need_no_host_reads_of_the_batch():
    module = sampler(unconditional(), batch_size=2, output_type="pt")
    with emulator.record() as events:
        (found,) = trainer(graphs()).predict(module, DataLoader(range(4), batch_size=4))
    images = stock(unconditional(), 4, batch_size=4)
    assert_images(found["images"].permute(0, 2, 3, 1).numpy(), images, 1e-5)
    replays = [place for place, event in enumerate(events) if event.kind == "replay"]
    between = events[replays[0] : replays[-1]]
    assert not [event for event in between if event.kind in ("host_read", "d2h")]


def test_called_by_hand_on_the_cpu():
    module = sampler(stable_diffusion(), batch_size=2).eval()
    images = stock(stable_diffusion(), 3, prompt=PROMPTS[:3])
    first = module.predict_step(PROMPTS[:2])["images"]
    second = module.predict_step(PROMPTS[2:3])["images"]
    assert (np.stack([*first, *second]) == images).all()


def test_called_by_hand_after_a_run():
    """The run's sampler, which the trainer still has, tells nothing of what comes then."""
    module = noisy(batch_size=2)
    predict(module, PROMPTS[:4], loader_batch=2)
    found = [module.predict_step(PROMPTS[:2], number)["index"] for number in range(2)]
    assert found == [[4, 5], [6, 7]]


def test_a_row_with_arguments_that_are_dicts():
    rows = [{"prompt": PROMPTS[0], "cross_attention_kwargs": {"unknown": 1}}]
    found = noisy(batch_size=1).predict_step(rows)
    assert found["settings"][0]["cross_attention_kwargs"] == {"unknown": 1}


def test_seeds_of_numpy_and_pytorch():
    assert noisy(batch_size=1, seed=np.int64(3)).predict_step(["a"])["seed"] == [3]
    rows = [{"prompt": "a", "seed": np.int64(4), "index": torch.tensor(2)}]
    found = noisy(batch_size=1).predict_step(rows)
    assert (found["seed"], found["index"]) == ([4], [2])


def test_two_dataloaders_each_count_from_zero():
    loaders = [DataLoader(PROMPTS[:2], batch_size=2), DataLoader(PROMPTS[:2], batch_size=1)]
    first, second = trainer().predict(noisy(batch_size=2), loaders)
    images = expected(2, PROMPTS[:2])
    assert_images(np.stack(first[0]["images"]), images, 1e-4)
    again = np.stack([image for batch in second for image in batch["images"]])
    assert_images(again, images, 1e-4)


def test_an_iterable_dataset_counts():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(PROMPTS[:3])

    module = noisy(batch_size=2)
    for _ in range(2):
        loaders = [DataLoader(Endless(), batch_size=2) for _ in range(2)]
        for found in trainer().predict(module, loaders):
            assert [index for batch in found for index in batch["index"]] == [0, 1, 2]
            images = np.stack([image for batch in found for image in batch["images"]])
            assert_images(images, expected(3, PROMPTS[:3]), 1e-4)


def test_the_sampler_is_a_module_of_the_pipelines_parts(tmp_path):
    pipe = stable_diffusion()
    module = DiffusionSampler(pipe)
    names = {name.split(".")[0] for name in module.state_dict()}
    assert names == {"unet", "vae", "text_encoder"}
    assert module.unet is pipe.unet
    assert module.state_dict()["unet.conv_in.weight"] is not None
