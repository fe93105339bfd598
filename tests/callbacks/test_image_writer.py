"""`ImageWriter` in runs: what is written, what goes wrong, and what is left when it does."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from callbacks.image_runs import (
    Painter,
    content,
    index_of,
    numbers,
    pixels,
    writer_threads,
)
from callbacks.runs import trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image

from lightning_gaudi.callbacks import ImageWriter, image_writer
from lightning_gaudi.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _no_thread_stays():
    yield
    assert not writer_threads(), "a thread was left"


def test_images_index_and_contact_sheet(tmp_path):
    folder = tmp_path / "new" / "images"
    callback = ImageWriter(folder, columns=4)
    predicted = trainer(callback).predict(Painter(prompt="a/b"), numbers())
    assert [len(batch["index"]) for batch in predicted] == [3, 3, 1]
    names = [f"0000{i}-00-a-b.png" for i in range(7)]
    assert sorted(content(folder)) == [*names, "contact_sheet.png", "index.json"]
    for number, name in enumerate(names):
        assert np.array_equal(pixels(folder / name), np.full((8, 8, 3), number))
    entries = index_of(folder)
    assert [entry["file"] for entry in entries] == names
    assert len({entry.pop("weights") for entry in entries}) == 1
    assert entries[3] == {
        "file": names[3],
        "image_number": 0,
        "index": 3,
        "prompt": "a/b",
        "seed": 103,
        "width": 8,
        "height": 8,
    }
    with Image.open(folder / names[3]) as image:
        assert (image.info["prompt"], image.info["seed"]) == ("a/b", "103")
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.size == (4 * 132 + 4, 2 * 148 + 4)
    assert (callback.num_written, callback.num_left_out) == (7, 0)


@pytest.mark.parametrize(("image_format", "suffix"), [("jpeg", "jpg"), ("webp", "webp")])
def test_other_formats_without_a_sheet(image_format, suffix, tmp_path):
    trainer(ImageWriter(tmp_path, image_format=image_format, contact_sheet=False)).predict(
        Painter(), numbers(2)
    )
    assert sorted(content(tmp_path)) == [f"00000-00.{suffix}", f"00001-00.{suffix}", "index.json"]
    assert [entry["seed"] for entry in index_of(tmp_path)] == [100, 101]


def test_it_writes_while_the_next_batch_runs(tmp_path, monkeypatch):
    """The first batch's files are written only once the second batch has begun."""
    second_began = threading.Event()
    original = image_writer.write_whole

    def wait_then_write(path, data):
        assert second_began.wait(20), "the thread was waited for before the next batch"
        original(path, data)

    monkeypatch.setattr(image_writer, "write_whole", wait_then_write)

    class Second(Painter):
        def predict_step(self, batch, batch_idx):
            if batch_idx == 1:
                second_began.set()
            return super().predict_step(batch, batch_idx)

    module = Second()
    trainer(ImageWriter(tmp_path)).predict(module, numbers())
    assert "ImageWriter" not in module.threads[0]
    assert "ImageWriter" in module.threads[1]
    assert len(index_of(tmp_path)) == 7


@pytest.mark.parametrize("failing", [1, 6], ids=["second", "last"])
def test_an_error_in_writing_stops_the_run(failing, tmp_path, monkeypatch):
    original = image_writer.write_whole

    def fail(path, data):
        if path.name.startswith(f"0000{failing}"):
            raise OSError(28, "No space left on device")
        original(path, data)

    monkeypatch.setattr(image_writer, "write_whole", fail)
    with pytest.raises(
        RuntimeError, match=rf"could not write .*0000{failing}-00\.png: .*No space left"
    ) as error:
        trainer(ImageWriter(tmp_path, max_pending=1)).predict(Painter(), numbers())
    assert isinstance(error.value.__cause__, OSError)
    assert sorted(content(tmp_path)) == [f"0000{i}-00.png" for i in range(failing)]


class Stop(Callback):
    def __init__(self, error):
        self.error = error

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 2:
            raise self.error


def slow_writes(monkeypatch):
    original = image_writer.write_whole

    def write(path, data):
        time.sleep(0.05)
        original(path, data)

    monkeypatch.setattr(image_writer, "write_whole", write)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_made_is_written_when_the_run_stops(error, tmp_path, monkeypatch):
    slow_writes(monkeypatch)
    run = trainer(Stop(error("stop")), ImageWriter(tmp_path))
    with pytest.raises((error, SystemExit)):
        run.predict(Painter(), numbers())
    assert sorted(content(tmp_path)) == [f"0000{i}-00.png" for i in range(6)]


def test_an_error_in_writing_does_not_hide_the_one_that_stopped_the_run(tmp_path, monkeypatch):
    started = threading.Event()

    def fail(path, data):
        started.wait(20)
        raise OSError("disk full")

    class Fails(Painter):
        def predict_step(self, batch, batch_idx):
            if batch_idx == 1:
                started.set()
                raise ValueError("the run's own")
            return super().predict_step(batch, batch_idx)

    monkeypatch.setattr(image_writer, "write_whole", fail)
    with (
        pytest.warns(UserWarning, match="could not write .*disk full"),
        pytest.raises(ValueError, match="the run's own"),
    ):
        trainer(ImageWriter(tmp_path)).predict(Fails(), numbers())


def test_an_image_made_otherwise_is_an_error_or_is_replaced(tmp_path):
    trainer(ImageWriter(tmp_path)).predict(Painter(prompt="old"), numbers(3))
    before = content(tmp_path)
    with pytest.raises(
        ConfigurationError,
        match=r"00000-00-old\.png is there, but it was made otherwise: prompt was 'old' and is "
        r"'new' now\. .*on_change='replace'",
    ):
        trainer(ImageWriter(tmp_path)).predict(Painter(prompt="new"), numbers(3))
    assert content(tmp_path) == before
    trainer(ImageWriter(tmp_path, on_change="replace")).predict(Painter(prompt="new"), numbers(2))
    names = ["00000-00-new.png", "00001-00-new.png", "00002-00-old.png"]
    assert sorted(content(tmp_path))[:3] == names
    assert [entry["file"] for entry in index_of(tmp_path)] == names


def test_other_weights_are_a_change(tmp_path):
    trainer(ImageWriter(tmp_path)).predict(Painter(), numbers(2))
    trainer(ImageWriter(tmp_path)).predict(Painter(), numbers(2))
    module = Painter()
    torch.nn.init.constant_(module.layer.bias, 0.5)
    with pytest.raises(ConfigurationError, match="made otherwise: weights was "):
        trainer(ImageWriter(tmp_path)).predict(module, numbers(2))


def test_a_file_of_others_is_not_overwritten_in_silence(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "00001-00-mine.png")
    with pytest.raises(ConfigurationError, match="made otherwise: it is no image that ImageWriter"):
        trainer(ImageWriter(tmp_path)).predict(Painter(), numbers(3))
    with pytest.warns(UserWarning, match=r"00001-00-mine\.png has the name .* not in the index"):
        trainer(ImageWriter(tmp_path)).predict(Painter(), numbers(1))
    assert [entry["index"] for entry in index_of(tmp_path)] == [0]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, text in [
        (tmp_path / "file", r"folder /.*/file: a file is there\. Give another folder"),
        (tmp_path / "file" / "below", "folder .*: Not a directory"),
        (Path("/proc/images"), "cannot write images to the folder /proc/images: "),
        (Path("/proc"), "cannot write images to the folder /proc: "),  # there, but read-only
    ]:
        module = Painter()
        with pytest.raises(ConfigurationError, match=text):
            trainer(ImageWriter(path)).predict(module, numbers())
        assert not module.threads, "a batch was predicted first"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"image_format": "gif"}, "must be one of 'png', 'jpeg', 'webp', but it is 'gif'"),
        ({"on_change": "skip"}, "on_change must be 'raise' or 'replace', but it is 'skip'"),
        ({"columns": 0}, "columns must be 1 or more, but it is 0"),
        ({"max_pending": 0}, "max_pending must be 1 or more, but it is 0"),
    ],
    ids=["format", "on_change", "columns", "pending"],
)
def test_arguments_that_cannot_be(options, text):
    with pytest.raises(ConfigurationError, match=text):
        ImageWriter("images", **options)


@pytest.mark.parametrize(
    ("prediction", "text"),
    [
        (torch.zeros(3), "found no images: the prediction is of type Tensor. predict_step must"),
        ({"logits": [1, 2, 3]}, "found no images: the prediction is a dict with 'logits'"),
        ({"images": torch.zeros(3, 1, 2, 2)}, r"the prediction has only 'images'\. Return 'index'"),
        (
            {"images": torch.zeros(3, 1, 2, 2), "index": [1, 2, 3], "prompt": ["a"]},
            "has 3 images, but its 'prompt' is not a list of as many",
        ),
        (
            {"images": torch.zeros(3, 1, 2, 2), "index": [1, 2, 3], "seed": 5},
            "its 'seed' is not a list of as many",
        ),
    ],
    ids=["tensor", "logits", "no_index", "short", "number"],
)
def test_predictions_that_cannot_be_written(prediction, text, tmp_path):
    class Other(Painter):
        def predict_step(self, batch, batch_idx):
            return prediction

    with pytest.raises(ConfigurationError, match=text):
        trainer(ImageWriter(tmp_path)).predict(Other(), numbers())
    assert not content(tmp_path)


def test_several_dataloaders_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="takes one dataloader, but there are 2"):
        trainer(ImageWriter(tmp_path)).predict(Painter(), [numbers(), numbers()])


def test_contact_sheets_that_are_of_an_earlier_run_are_removed(tmp_path):
    """With fewer columns there were more of them."""
    trainer(ImageWriter(tmp_path, columns=1)).predict(Painter(), numbers(41))
    sheets = ["contact_sheet.png", "contact_sheet_2.png", "contact_sheet_3.png"]
    assert sorted(name for name in content(tmp_path) if name.startswith("contact")) == sheets
    trainer(ImageWriter(tmp_path, columns=2)).predict(Painter(), numbers(41))
    assert sorted(name for name in content(tmp_path) if name.startswith("contact")) == sheets[:2]


def test_several_writers_are_refused(tmp_path):
    writers = [ImageWriter(tmp_path / name) for name in ("a", "b")]
    module = Painter()
    module.leave_out = None
    with pytest.raises(ConfigurationError, match=r"several ImageWriters.*one in each Trainer"):
        trainer(*writers).predict(module, numbers())
    assert module.leave_out is None


def test_other_stages_leave_the_folder_alone(tmp_path):
    class Tested(Painter):
        def test_step(self, batch, batch_idx):
            return None

    trainer(ImageWriter(tmp_path / "images")).test(Tested(), numbers(), verbose=False)
    assert not (tmp_path / "images").exists()
