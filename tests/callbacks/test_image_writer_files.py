"""Names, pixels, metadata and sheets of images, and the thread that writes them."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gaudi.callbacks.images.background import BackgroundWriter
from lightning_gaudi.callbacks.images.metadata import (
    SUFFIXES,
    as_json,
    differences,
    encode,
    read_fields,
)
from lightning_gaudi.callbacks.images.naming import file_name, is_left_over, numbers_in
from lightning_gaudi.callbacks.images.pixels import to_pil
from lightning_gaudi.callbacks.images.sheet import contact_sheets
from lightning_gaudi.errors import ConfigurationError


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A red cat, sitting!", "00003-00-a-red-cat-sitting.png"),
        ("../../etc/passwd", "00003-00-etc-passwd.png"),
        ('C:\\NUL|<>*?"\0\n\t', "00003-00-c-nul.png"),
        ("con", "00003-00-con.png"),
        ("", "00003-00.png"),
        (" . ", "00003-00.png"),
        ("赤い猫 Müller", "00003-00-赤い猫-müller.png"),
        ("\ud800 half", "00003-00-half.png"),
        ("x" * 300, f"00003-00-{'x' * 100}.png"),
        ("猫" * 300, f"00003-00-{'猫' * 33}.png"),
    ],
    ids=[
        "words",
        "slashes",
        "special",
        "reserved",
        "empty",
        "dots",
        "unicode",
        "half",
        "long",
        "wide",
    ],
)
def test_names_are_safe(prompt, expected, tmp_path):
    name = file_name(3, 0, prompt, "png")
    assert name == expected
    assert numbers_in(name, "png") == (3, 0)
    assert numbers_in(name, "jpg") is None
    # Written under a hidden name that is a little longer.
    (tmp_path / f".{name}.abcdefgh").write_bytes(b"")
    assert is_left_over(f".{name}.abcdefgh", "png")


def test_names_are_unique_and_sorted():
    assert file_name(123456, 12, "a", "jpg") == "123456-12-a.jpg"
    names = [file_name(i, n, "b" if i else "c", "png") for i in (0, 1, 20) for n in (0, 1, 11)]
    assert names == sorted(set(names))


@pytest.mark.parametrize("name", ["index.json", "contact_sheet.png", "3-0.png", "00003-a.png"])
def test_other_names_are_no_images(name):
    assert numbers_in(name, "png") is None
    assert not is_left_over(name, "png")
    assert not is_left_over(f".{name}.abc", "png")


PIXELS = np.linspace(0, 1, 5 * 4 * 3, dtype=np.float32).reshape(5, 4, 3)
BYTES = (PIXELS * 255).round().astype(np.uint8)


@pytest.mark.parametrize(
    "images",
    [
        [Image.fromarray(BYTES)],
        [PIXELS],
        PIXELS[None].astype(np.float64),
        [BYTES],
        torch.from_numpy(PIXELS).permute(2, 0, 1)[None],
        [torch.from_numpy(BYTES).permute(2, 0, 1), None],
    ],
    ids=["pil", "array", "arrays", "bytes", "tensor", "tensors"],
)
def test_kinds_of_images(images):
    (found,) = to_pil(images)
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), BYTES)


def test_tensors_on_the_device_and_in_half_precision():
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)[None].bfloat16()
    expected = (tensor[0].float().permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    (found,) = to_pil(tensor.to("hpu"))
    assert np.array_equal(np.asarray(found), expected)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_channels(channels, mode):
    (found,) = to_pil(torch.rand(1, channels, 2, 3))
    assert (found.mode, found.size) == (mode, (3, 2))
    (flat,) = to_pil([np.zeros((2, 3), np.float32)])
    assert (flat.mode, flat.size) == ("L", (3, 2))


def test_an_image_shares_no_memory():
    data = BYTES.copy()
    (found,) = to_pil([data])
    data[:] = 0
    assert np.array_equal(np.asarray(found), BYTES)


def test_nan_becomes_black():
    pixels = PIXELS.copy()
    pixels[0, 0] = np.nan
    with pytest.warns(UserWarning, match="an image has NaN, which is written as black"):
        (found,) = to_pil([pixels])
    assert np.asarray(found)[0, 0].tolist() == [0, 0, 0]
    assert np.array_equal(np.asarray(found)[1:], BYTES[1:])


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (torch.randn(1, 4, 8, 8), r"is of values from -\d.* as latents have\. .*output_type='pil'"),
        ([np.full((2, 2, 3), 255.0)], "is of values from 255 to 255"),
        ([torch.zeros(8, 8)], r"is a tensor of shape \(8, 8\)"),
        ([np.zeros((1, 2, 2, 3))], r"is an array of shape \(1, 2, 2, 3\)"),
        ([np.zeros((2, 2, 5))], "is of 5 channels"),
        ([np.zeros((0, 2, 3))], "and 0 values"),
        ([np.zeros((2, 2, 3), np.int64)], "is of dtype int64"),
        (["a.png"], "is of type str"),
        (3, "have 'images' of type int"),
    ],
    ids=["latents", "to_255", "flat", "batch", "channels", "nothing", "int64", "path", "number"],
)
def test_what_is_no_image(images, text):
    with pytest.raises(ConfigurationError, match=text):
        to_pil(images)


FIELDS = {
    "index": 3,
    "image_number": 1,
    "prompt": "赤 \ud800 \0 'x'",
    "seed": 7,
    "settings": {"steps": 4, "scale": 0.1},
    "name": "größe",
}


@pytest.mark.parametrize("image_format", list(SUFFIXES))
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_metadata_is_read_as_written(image_format, mode, tmp_path):
    image = Image.fromarray(BYTES).convert(mode)
    path = tmp_path / f"a.{SUFFIXES[image_format]}"
    path.write_bytes(encode(image, FIELDS, image_format))
    assert read_fields(path) == (FIELDS, (4, 5))
    with Image.open(path) as found:
        assert found.format == image_format.upper()
        if image_format == "png":
            assert found.mode == mode
            assert np.array_equal(np.asarray(found), np.asarray(image))
            assert found.info["prompt"] == "赤 ? \0 'x'"
            assert found.info["seed"] == "7"
            assert json.loads(found.info["settings"]) == FIELDS["settings"]


def test_files_of_others_have_no_metadata(tmp_path):
    Image.fromarray(BYTES).save(tmp_path / "a.png")
    assert read_fields(tmp_path / "a.png") is None
    data = encode(Image.fromarray(BYTES), FIELDS, "png")
    (tmp_path / "b.png").write_bytes(data[:50])
    (tmp_path / "c.png").write_bytes(b"no image")
    assert read_fields(tmp_path / "b.png") is read_fields(tmp_path / "c.png") is None


def test_fields_as_json():
    fields = {
        "index": np.int64(3),
        "seed": torch.tensor(4),
        "size": (1, 2),
        "nothing": None,
        "image": Image.fromarray(BYTES),
        "settings": {"a": 1.5},
    }
    assert as_json(fields) == {"index": 3, "seed": 4, "size": [1, 2], "settings": {"a": 1.5}}


def test_differences():
    assert differences(FIELDS, {**FIELDS, "nsfw_content_detected": False}) == []
    other = {**FIELDS, "seed": 8, "settings": {"steps": 4, "scale": 0.2, "eta": 1.0}}
    assert differences(FIELDS, other) == [
        "seed was 8 and is 7 now",
        "scale was 0.2 and is 0.1 now",
        "eta was 1.0",
    ]
    assert differences({"seed": 1}, {"seed": True}) == ["seed was True and is 1 now"]


def test_contact_sheets(tmp_path):
    entries = []
    for number in range(45):
        Image.new("RGB", (8, 4), (number, 100, 0)).save(tmp_path / f"{number}.png")
        entries.append({"file": f"{number}.png", "index": number, "prompt": "a\nb 猫 \ud800" * 30})
    sheets = contact_sheets(tmp_path, entries, columns=2)
    assert len(sheets) == 2
    first, second = (_opened(tmp_path, sheet) for sheet in sheets)
    assert first.size == (2 * 132 + 4, 20 * 148 + 4)
    assert second.size == (2 * 132 + 4, 3 * 148 + 4)
    for place in range(40):
        left, top = place % 2 * 132 + 4, place // 2 * 148 + 4
        assert first.getpixel((left, top + 32)) == (place, 100, 0)  # half as high as wide
        assert first.getpixel((left + 127, top + 95)) == (place, 100, 0)
        assert first.getpixel((left, top + 31)) == (255, 255, 255)
        caption = np.asarray(first.crop((left, top + 128, left + 132, top + 144)))
        assert (caption < 128).any(), "no caption"
        assert (caption[:, 129:] == 255).all(), "the caption is wider than its cell"
    assert second.getpixel((4, 2 * 148 + 4 + 64)) == (44, 100, 0)


def _opened(folder, content):
    (folder / "sheet.png").write_bytes(content)
    with Image.open(folder / "sheet.png") as image:
        return image.convert("RGB")


def test_jobs_run_in_order_in_a_thread_that_ends():
    ran = []
    writer = BackgroundWriter(max_pending=2)
    before = threading.active_count()
    for number in range(20):
        writer.submit(lambda number=number: ran.append((number, threading.current_thread())))
    writer.close()
    assert [number for number, _ in ran] == list(range(20))
    assert threading.main_thread() not in {thread for _, thread in ran}
    assert threading.active_count() == before
    writer.close()  # again
    writer.submit(lambda: ran.append((20, None)))
    writer.close()
    assert len(ran) == 21


def test_the_queue_is_bounded():
    may_go = threading.Event()
    submitted = []

    def fill():
        for number in range(5):
            writer.submit(lambda: may_go.wait(20))
            submitted.append(number)

    writer = BackgroundWriter(max_pending=2)
    filler = threading.Thread(target=fill)
    filler.start()
    deadline = time.monotonic() + 10
    while len(submitted) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert submitted == [0, 1, 2]  # one runs, two wait
    may_go.set()
    filler.join(20)
    writer.close()
    assert submitted == list(range(5))


def test_an_error_reaches_the_caller_and_nothing_hangs():
    ran = []

    def fail():
        raise OSError("disk full")

    def fill():
        for _ in range(20):
            writer.submit(lambda: ran.append(1))

    writer = BackgroundWriter(max_pending=1)
    before = threading.active_count()
    writer.submit(fail)
    with pytest.raises(OSError, match="disk full"):
        fill()
        writer.close()
    assert threading.active_count() == before
    assert not ran, "a job ran after one that failed"
    writer.close()  # the error was told once
