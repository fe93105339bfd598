"""The example of digits, run very small, and its config through ``lightning-gaudi predict``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from callbacks.image_runs import content, index_of, pixels
from diffusers import ConsistencyModelPipeline, DDIMScheduler, UNet2DModel
from diffusers.utils import logging
from sklearn.datasets import load_digits

from lightning_gaudi.cli import main
from lightning_gaudi.modules.diffusion import DiffusionSampler

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "__array__ implementation doesn't accept a copy keyword",
        "__array_wrap__ must accept context",
        ".*treespec, LeafSpec.*",
    )
] + [pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # LightningCLI and jsonargparse


def tiny_pipeline():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
        num_class_embeds=10,
    ).eval()
    return ConsistencyModelPipeline(unet, DDIMScheduler())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with what the example leaves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    tiny_pipeline().save_pretrained("runs/digits/pipeline")
    (tmp_path / "runs/digits/digits.csv").write_text("class_labels\n3\n0\n7\n")
    return tmp_path


def stock(labels, seeds, steps):
    """Images of the stock pipeline on the CPU, an array (number, 8, 8) of uint8."""
    pipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=len(labels),
        class_labels=list(labels),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_inference_steps=steps,
        output_type="pil",
    ).images
    return np.stack([np.asarray(image) for image in images])


def test_the_config_samples_what_the_stock_pipeline_does(folder, capsys):
    config = str(EXAMPLES / "configs" / "diffusion.yaml")
    options = ["--trainer.enable_progress_bar=false", "--model.init_args.num_inference_steps=4"]
    main(["predict", "--config", config, *options])
    images = folder / "runs/diffusion/images"
    entries = index_of(images)
    assert [entry["file"] for entry in entries] == [
        "00000-00-3.png",
        "00001-00-0.png",
        "00002-00-7.png",
    ]
    assert [entry["seed"] for entry in entries] == [1000, 1001, 1002]
    assert [entry["class_labels"] for entry in entries] == [3, 0, 7]
    found = np.stack([pixels(images / entry["file"]) for entry in entries])
    expected = stock([3, 0, 7], [1000, 1001, 1002], 4)
    assert expected.std() > 10
    assert abs(found.astype(int) - expected.astype(int)).max() <= 1  # rounding to 8 bits
    assert "HPU graphs" in capsys.readouterr().out

    before = content(images)
    (images / "00001-00-0.png").unlink()
    main(["predict", "--config", config, *options])
    assert content(images) == before


def test_class_labels_of_any_number_in_batches_of_one_size():
    module = DiffusionSampler(
        tiny_pipeline(),
        num_inference_steps=4,
        batch_size=4,
    )
    labels = [1, 5, 9, 0, 2]
    result = module.eval().predict_step({"class_labels": labels})
    found = np.stack([np.asarray(image) for image in result["images"]]).astype(int)
    assert abs(found - stock(labels, range(5), 4)).max() <= 1
    assert module.stats.filler_images == 3


def test_the_classifier_knows_real_digits(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from sample_digits import share_recognised

    images, digits = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    assert share_recognised(images, digits) > 0.99
    assert share_recognised(images, (digits + 1) % 10) < 0.01
    assert share_recognised(np.zeros((20, 8, 8)), np.repeat(np.arange(10), 2)) == pytest.approx(0.1)


def run(monkeypatch, *args):
    """Run the example in this process, whose HPU is emulated already."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from sample_digits import main as run_example

    monkeypatch.setattr(sys, "argv", ["sample_digits.py", *args])
    run_example()


def test_the_example_runs_very_small(tmp_path, monkeypatch, capsys):
    tiny = ("--channels", "8", "16", "--batch-size", "256", "--epochs", "2", "--per-class", "1")
    verbosity = logging.get_verbosity()
    try:
        with pytest.raises(SystemExit, match="Fewer than 80 % of the digits were recognised"):
            # So little training does not pass its own check.
            run(monkeypatch, *tiny, "--steps", "3", "--check", "--out", str(tmp_path))
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    output = capsys.readouterr().out
    said = " ".join(output.split())
    assert "Trained for 14 steps in" in said
    assert "Sampled 10 digits" in said
    share = float(re.search(r"recognises (\S+)% of 10\.", said)[1])
    assert share < 80
    entries = index_of(tmp_path / "images")
    assert [entry["class_labels"] for entry in entries] == list(range(10))
    assert pixels(tmp_path / "images" / "contact_sheet.png").shape == (152, 1324, 3)
    # One graph for training and one for sampling; only the first training step ran op by op.
    rows = re.findall(r"│ unet +│ +(\d+) │ +(\d+) │ +\d+ │ +(\d+) │", output)
    assert rows == [("1", "12", "1"), ("1", "2", "0")]


def test_what_the_example_refuses(monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "--epochs", "0")
    assert caught.value.code == 2
    assert "--epochs must be 1 or more, but it is 0" in capsys.readouterr().err
