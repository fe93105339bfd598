"""A second run goes on where the first stopped, and its images are those of an unbroken run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from callbacks.image_runs import content, index_of
from callbacks.runs import trainer
from diffusers import StableDiffusionImg2ImgPipeline
from modules.diffusion.pipelines import scheduler, stable_diffusion, unconditional
from modules.diffusion.sampling import FROM_NUMPY
from torch.utils.data import DataLoader

from lightning_gaudi import HPUGraphCallback
from lightning_gaudi.callbacks import ImageWriter, PredictionOrder
from lightning_gaudi.data import PromptDataModule
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.modules.diffusion import DiffusionSampler

pytestmark = [pytest.mark.filterwarnings(each) for each in FROM_NUMPY]

ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{Path(__file__).parent.parent}",
    "OMP_NUM_THREADS": "1",
}


def sampler(**options):
    options = {"num_inference_steps": 2, "batch_size": 2, "output_type": "pt", **options}
    return DiffusionSampler(unconditional(), **options)


def run(folder, *callbacks, module=None, num_images=7, **options):
    writer = ImageWriter(folder, **options)
    module = module or sampler()
    data = PromptDataModule(num_images=num_images)
    predicted = trainer(writer, *callbacks).predict(module, data)
    return writer, module, predicted


# Killed between writing the hidden file of the 4th image and giving it its name.
KILLED = """
import os, signal, sys
from pathlib import Path
from lightning_gaudi import whole_files
from lightning_gaudi.runtime import loading
loading.load("lazy")
from callbacks.test_image_writer_resume import run

original = os.replace
def replace(source, target):
    if "00003-" in str(target):
        os.kill(os.getpid(), signal.SIGKILL)
    original(source, target)
whole_files.os.replace = replace
run(Path(sys.argv[1]), max_pending=1)
"""


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path):
    folder = tmp_path / "killed"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(folder)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    run(tmp_path / "unbroken")
    unbroken = content(tmp_path / "unbroken")

    left = content(folder)
    (hidden,) = (name for name in left if name.startswith("."))
    assert hidden.startswith(".00003-00.png.")
    assert {name: unbroken[name] for name in left if name != hidden} == {
        name: data for name, data in left.items() if name != hidden
    }, "a file is not whole"
    assert sorted(left) == [hidden, "00000-00.png", "00001-00.png", "00002-00.png"]

    writer, module, _ = run(folder)
    assert (writer.num_written, writer.num_left_out) == (4, 3)
    assert module.stats.images == 4
    assert content(folder) == unbroken
    assert len({unbroken[f"0000{i}-00.png"] for i in range(7)}) == 7


def test_images_that_are_there_are_not_sampled_again(tmp_path):
    _, first, predicted = run(tmp_path, num_images=3)
    before = content(tmp_path)
    writer, module, again = run(tmp_path, PredictionOrder(), num_images=5)
    assert (writer.num_written, writer.num_left_out) == (2, 3)
    assert (module.stats.images, module.stats.batches) == (2, 2)  # rows 2 and 3 came together
    assert module.leave_out is None
    assert [row["images"] is None for row in again] == [True] * 3 + [False] * 2
    assert [row["index"] for row in again] == list(range(5))
    after = content(tmp_path)
    assert all(after[name] == data for name, data in before.items() if name[0] == "0")
    assert [entry["seed"] for entry in index_of(tmp_path)] == list(range(5))
    assert index_of(tmp_path)[4]["settings"]["pipeline"] == "DDPMPipeline"
    assert first.stats.images == len([i for batch in predicted for i in batch["images"]]) == 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"seed": 1}, "seed was 0 and is 1 now"),
        ({"num_inference_steps": 3}, "num_inference_steps was 2 and is 3 now"),
        (
            {"scheduler": "DDIMScheduler"},
            "scheduler was 'DDPMScheduler' and is 'DDIMScheduler' now",
        ),
    ],
    ids=["seed", "steps", "scheduler"],
)
def test_a_changed_setting_is_an_error_before_sampling(options, text, tmp_path):
    folder = tmp_path / "images"
    run(folder, num_images=2)
    module = sampler(**options)
    with pytest.raises(ConfigurationError, match=f"0000.* made otherwise: {text}"):
        run(folder, module=module, num_images=2)
    assert module.stats.batches == 0
    assert module.leave_out is None
    writer, _, _ = run(folder, module=module, num_images=2, on_change="replace")
    assert (writer.num_written, writer.num_left_out) == (2, 0)
    run(tmp_path / "fresh", module=sampler(**options), num_images=2)
    assert content(tmp_path / "fresh") == content(folder)


def test_whatever_changes_an_image_is_a_change(tmp_path):
    """Pictures, arguments that are lists or dicts, and the scheduler's configuration."""
    picture, other = torch.zeros(3, 16, 16), torch.zeros(3, 16, 16)
    other[0, 0, 0] = 1.0

    def made(folder, row=(), config=(), **call_options):
        pipe = stable_diffusion(StableDiffusionImg2ImgPipeline)
        pipe.scheduler = scheduler("DDPMScheduler", **dict(config))
        module = DiffusionSampler(pipe, num_inference_steps=2, call_options=call_options)
        loader = DataLoader([{"prompt": "a", "image": picture, **dict(row)}], collate_fn=list)
        writer = ImageWriter(tmp_path / folder)
        trainer(writer).predict(module, loader)
        return writer

    for name, first, second in (
        ("image", {}, {"row": {"image": other}}),
        ("scheduler_config", {}, {"config": {"beta_end": 0.02}}),
        ("timesteps", {"timesteps": [900, 500]}, {"timesteps": [800, 500]}),
        ("cross_attention_kwargs", {}, {"cross_attention_kwargs": {"scale": 0.5}}),
    ):
        made(name, **first)
        assert made(name, **first).num_left_out == 1
        with pytest.raises(ConfigurationError, match=f"made otherwise: .*{name}"):
            made(name, **second)


def test_a_question_asked_before_is_still_asked(tmp_path):
    module = sampler()
    module.leave_out = ours = lambda told: told["index"] == 1
    run(tmp_path, module=module, num_images=3)
    assert [entry["index"] for entry in index_of(tmp_path)] == [0, 2]
    assert module.leave_out is ours


def test_rows_with_generators_are_made_anew(tmp_path):
    for _ in range(2):
        rows = [{"index": i, "generator": torch.Generator().manual_seed(i)} for i in range(2)]
        writer = ImageWriter(tmp_path)
        trainer(writer).predict(sampler(), DataLoader(rows, batch_size=2, collate_fn=list))
        assert (writer.num_written, writer.num_left_out) == (2, 0)


def test_several_images_of_prompts_with_graphs(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"prompt": "a red cat", "seed": 5})
        + "\n"
        + json.dumps({"prompt": "the / dog", "negative_prompt": "bad", "group": "x"})
    )
    folder = tmp_path / "images"
    module = DiffusionSampler(
        stable_diffusion(), num_inference_steps=2, num_images_per_prompt=3, batch_size=2
    )
    data = PromptDataModule(tmp_path / "rows.jsonl", extra_columns=["group"])
    graphs = HPUGraphCallback()
    trainer(ImageWriter(folder), graphs).predict(module, data)
    expected = [f"00000-0{i}-a-red-cat.png" for i in range(3)]
    expected += [f"00001-0{i}-the-dog.png" for i in range(3)]
    entries = index_of(folder)
    assert [entry["file"] for entry in entries] == expected
    assert [entry["seed"] for entry in entries] == [5, 6, 7, 3, 4, 5]
    assert entries[3]["settings"]["negative_prompt"] == "bad"
    assert [entry.get("group") for entry in entries] == [None] * 3 + ["x"] * 3
    before = content(folder)
    (folder / expected[4]).unlink()
    trainer(ImageWriter(folder), graphs).predict(module, data)
    assert content(folder) == before


def test_nothing_is_said_of_graphs_where_every_image_is_there(tmp_path):
    run(tmp_path, num_images=2)
    graphs = HPUGraphCallback()
    writer, _, _ = run(tmp_path, graphs, num_images=2)  # a warning would be an error
    assert (writer.num_left_out, graphs.stats.captures) == (2, 0)
    with pytest.warns(UserWarning, match="no step called 'unet'"):  # named by the user
        run(tmp_path, HPUGraphCallback(targets="unet"), num_images=2)


TWO_RANKS = """
import sys
from pathlib import Path
from callbacks.test_image_writer_resume import run_on_two_ranks
run_on_two_ranks(Path(sys.argv[1]))
"""


def run_on_two_ranks(folder):
    writer, module = ImageWriter(folder / "two"), sampler()
    run_of = trainer(writer, PredictionOrder(), devices=2)
    predicted = run_of.predict(module, PromptDataModule(num_images=5))
    assert [row["index"] for row in predicted] == list(range(5))
    told = [writer.num_left_out, writer.num_written, module.stats.images]
    (folder / f"rank{run_of.global_rank}.json").write_text(json.dumps(told))


@pytest.mark.slow
def test_two_ranks_write_their_own_images_and_one_index(tmp_path):
    """The first two images were made on one rank."""
    run(tmp_path / "two", num_images=2)
    script = tmp_path / "script.py"  # Lightning starts it once more for the second rank
    script.write_text(TWO_RANKS)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
        env={**ENVIRONMENT, "LIGHTNING_GAUDI_EMULATOR_DEVICES": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    told = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    # Rows 0, 1 and 4 are the first rank's, 2 and 3 the second's; fillers are nobody's.
    assert told == [[2, 1, 1], [0, 2, 2]]
    run(tmp_path / "one", num_images=5)
    assert content(tmp_path / "two") == content(tmp_path / "one")
