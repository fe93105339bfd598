"""Rows for image pipelines: every column has its type, and what is wrong is said with its line."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from callbacks.runs import trainer
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from PIL import Image

from lightning_gaudi.callbacks import PredictionOrder
from lightning_gaudi.data import PromptDataModule
from lightning_gaudi.data.batching import Filler
from lightning_gaudi.data.prompt_rows import KNOWN_COLUMNS, read_prompts
from lightning_gaudi.errors import ConfigurationError


class Collector(LightningModule):
    """Predicts nothing but what it was given."""

    def __init__(self, options=None):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.options = options
        self.batches = []

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch

    def predict_step(self, batch, batch_idx):
        self.batches.append(batch)
        return {"index": [row["index"] for row in batch]}


def write(folder, name, content):
    path = folder / name
    path.write_text(content, "utf-8")
    return path


def rows_of(path, **options):
    rows = read_prompts(path, **options)
    return [rows[i] for i in range(len(rows))]


def test_text_lines_are_prompts_and_empty_lines_are_none(tmp_path):
    path = write(tmp_path, "a.txt", "a red cat\n\n  \nEin Müller, «ß»\n the dog \n")
    assert rows_of(path) == [
        {"index": 0, "prompt": "a red cat"},
        {"index": 1, "prompt": "Ein Müller, «ß»"},
        {"index": 2, "prompt": " the dog "},
    ]


def test_columns_of_a_csv_have_their_types(tmp_path):
    path = write(
        tmp_path,
        "a.csv",
        "caption,negative_prompt,seed,guidance_scale,num_inference_steps,height,shop\n"
        "a cat,bad,7,2.5,4,16,north\n"
        ",,,,,,\n",
    )
    assert rows_of(path, prompt_column="caption", extra_columns=["shop"]) == [
        {
            "index": 0,
            "prompt": "a cat",
            "negative_prompt": "bad",
            "seed": 7,
            "guidance_scale": 2.5,
            "num_inference_steps": 4,
            "height": 16,
            "shop": "north",
        },
        {"index": 1, "prompt": ""},
    ]
    (first, _) = rows_of(path, prompt_column="caption", extra_columns=["shop"])
    assert isinstance(first["seed"], int)
    assert isinstance(first["guidance_scale"], float)


def test_rows_of_json_lines(tmp_path):
    rows = [
        {"class_labels": 3, "seed": [5, 6], "eta": 1, "extra": {"a": [1]}},
        {"class_labels": 0, "seed": None},
    ]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert rows_of(path, extra_columns=["extra"]) == [
        {"index": 0, **rows[0]},
        {"index": 1, "class_labels": 0},
    ]


def test_images_are_opened_when_a_row_is_asked_for(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "cat.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "mask.png")
    path = write(tmp_path, "a.csv", "prompt,image,mask_image\nx,in/cat.png,mask.png\n")
    rows = read_prompts(path)
    row = rows[0]
    assert np.array_equal(np.asarray(row["image"]), pixels)
    assert row["image"].mode == "RGB"
    assert row["mask_image"].mode == "L"
    assert np.array_equal(np.asarray(row["mask_image"]), pixels[..., 0])
    data = (tmp_path / "in" / "cat.png").read_bytes()
    assert row["image_path"] == "in/cat.png"
    assert row["image_sha256"] == hashlib.sha256(data).hexdigest()

    (tmp_path / "mask.png").write_bytes(b"no image")
    with pytest.raises(ConfigurationError, match=r"cannot open .*mask\.png as an image"):
        rows[0]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", "\n \n", r"a\.txt has no prompts\. Write one a line"),
        ("a.csv", "prompt,seed\n", r"a\.csv has no prompts"),
        ("a.jsonl", "", r"a\.jsonl has no prompts"),
        (
            "a.csv",
            "promt,seed\nx,1\n",
            r"a\.csv, line 2: the column 'promt' is unknown\. Known are class_labels, .*prompt,.*"
            r"seed, .*extra_columns",
        ),
        ("a.jsonl", '{"prompt": "x", "steps": 3}', r"line 1: the column 'steps' is unknown"),
        ("a.jsonl", '{"index": 3}', r"line 1: the column 'index' is unknown"),
        (
            "a.jsonl",
            '{"prompt": "x"}\n\n{"seed": 3}',
            r"a\.jsonl, line 3 has no 'prompt', but .*line 1 has one\. Give it to all rows or to",
        ),
        ("a.csv", "prompt,seed\nx,1\ny,-2\n", r"line 3: seed must be a whole number from 0 .*'-2'"),
        ("a.csv", "prompt,height\nx,1.5\n", r"line 2: height must be a whole number .* is '1\.5'"),
        ("a.csv", "prompt,strength\nx,high\n", r"strength must be a number, but it is 'high'"),
        ("a.jsonl", '{"prompt": "x", "eta": NaN}', r"line 1: eta must be a number, but it is nan"),
        ("a.csv", "prompt,strength\nx,inf\n", r"strength must be a number, but it is 'inf'"),
        (
            "a.csv",
            "prompt,num_inference_steps\nx,5\ny,0\n",
            r"line 3: num_inference_steps must be a whole number of 1 or more, but it is '0'",
        ),
        (
            "a.csv",
            "class_labels\n0\n-1\n",
            r"line 3: class_labels must be .* of 0 or more, .* '-1'",
        ),
        ("a.jsonl", '{"prompt": 3}', r"line 1: prompt must be a text, but it is 3"),
        ("a.jsonl", '{"prompt": "x", "width": true}', r"width must be a whole number .* is True"),
        ("a.jsonl", '{"prompt": "x", "seed": [1, "a"]}', r"seed must be .*, but it is \[1, 'a'\]"),
        ("a.csv", "prompt,image\nx,b.png\n", r"line 2: image is 'b\.png', but there is no file /"),
    ],
)
def test_what_a_file_cannot_be(tmp_path, name, content, text):
    path = write(tmp_path, name, content)
    with pytest.raises(ConfigurationError, match=text):
        PromptDataModule(path).setup("predict")


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot read .*none\.txt: there is no such file"):
        PromptDataModule(tmp_path / "none.txt").setup()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "takes either predict, a file of prompts, or num_images, .* are None and None"),
        ({"predict": "a.txt", "num_images": 3}, "they are 'a.txt' and 3"),
        ({"num_images": 0}, "num_images must be a whole number of 1 or more, but it is 0"),
        ({"num_images": 2.5}, "num_images must be a whole number of 1 or more, but it is 2.5"),
        ({"num_images": 3, "batch_size": 0}, "batch_size must be a whole .* but it is 0"),
        ({"num_images": 3, "num_workers": -1}, "num_workers must be 0 or more, but it is -1"),
        ({"predict": "a.txt", "extra_columns": ["seed"]}, "'seed', which is no further column"),
        ({"predict": "a.txt", "extra_columns": ["index"]}, "call the file's column otherwise"),
    ],
    ids=["neither", "both", "no_images", "fraction", "batch_size", "workers", "known", "reserved"],
)
def test_arguments_that_cannot_be(options, text):
    with pytest.raises(ConfigurationError, match=text):
        PromptDataModule(**options)


def test_the_prompts_own_name_is_unknown_where_another_was_given(tmp_path):
    path = write(tmp_path, "a.csv", "text,prompt\nx,y\n")
    with pytest.raises(
        ConfigurationError, match=r"'prompt' is unknown\. Known are .*text, width"
    ) as e:
        read_prompts(path, prompt_column="text")
    assert " prompt," not in str(e.value)


class Options:
    batch_size = 6
    num_images_per_prompt = 4


@pytest.mark.parametrize(
    ("options", "batch_size", "expected"),
    [(None, None, [1] * 7), (Options, None, [3, 3, 1]), (Options, 2, [2, 2, 2, 1])],
    ids=["alone", "fills_the_samplers_batches", "given"],
)
def test_batches_through_a_trainer(options, batch_size, expected):
    module = Collector(options)
    data = PromptDataModule(num_images=7, batch_size=batch_size)
    predicted = trainer(PredictionOrder()).predict(module, data)
    assert [len(batch) for batch in module.batches] == expected
    assert [row for batch in module.batches for row in batch] == [{"index": i} for i in range(7)]
    assert [row["index"] for row in predicted] == list(range(7))


@pytest.mark.parametrize("number", [1, 2, 5, 6])
def test_two_ranks_take_all_rows_once_and_the_same_number_of_steps(number, monkeypatch):
    data = PromptDataModule(num_images=number, batch_size=2)
    of_ranks = []
    for rank in range(2):
        loader = data.predict_dataloader()
        monkeypatch.setattr(loader.batch_sampler, "_rank", rank)
        monkeypatch.setattr(loader.batch_sampler, "_world_size", 2)
        of_ranks.append(list(loader))
    assert len(of_ranks[0]) == len(of_ranks[1])
    rows = [row for batches in of_ranks for batch in batches for row in batch]
    assert sorted(row["index"] for row in rows if "is_filler" not in row) == list(range(number))
    assert {len(batch) for batches in of_ranks for batch in batches} == {2}


def test_a_filler_is_marked(tmp_path):
    rows = read_prompts(write(tmp_path, "a.txt", "x\ny\n"))
    assert rows[Filler(1)] == {"index": 1, "prompt": "y", "is_filler": True}


def test_all_known_columns_are_read(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "i.png")
    values = {"seed": 1, "class_labels": 1, "height": 8, "width": 8}
    row = {
        name: "i.png" if "image" in name and name[-5:] != "scale" else values.get(name, 1)
        for name in KNOWN_COLUMNS
    }
    row = {name: str(v) if "prompt" in name else v for name, v in row.items()}
    path = write(tmp_path, "a.jsonl", json.dumps(row))
    (found,) = rows_of(path)
    assert set(KNOWN_COLUMNS) <= set(found)


def test_it_can_be_configured_from_yaml(tmp_path):
    path = write(tmp_path, "a.txt", "x\n")
    parser = ArgumentParser()
    parser.add_class_arguments(PromptDataModule, "data")
    given = [f"--data.predict={path}", "--data.batch_size=2", "--data.extra_columns=[shop]"]
    data = parser.instantiate(parser.parse_args(given)).data
    assert (data.path, data.batch_size, data.extra_columns) == (str(path), 2, ("shop",))
