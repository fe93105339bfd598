"""Image files that say how they were made."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

ImageFormat = Literal["png", "jpeg", "webp"]
SUFFIXES: dict[str, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
"""Known formats and the ends of their files' names."""

Fields = dict[str, Any]

_KEY = "lightning_gaudi"
_SHOWN = ("prompt", "class_labels", "seed", "settings")
_IMAGE_DESCRIPTION = 0x010E  # a tag of Exif


def encode(image: Image, fields: Mapping[str, Any], image_format: ImageFormat) -> bytes:
    """Make the content of an image file.

    Args:
        image: The image.
        fields: What is to be said of it, as `as_json` gives it. A PNG has them as JSON in the text
            ``lightning_gaudi``, and prompt, class label, seed and settings as texts of their own;
            JPEG and WebP have the JSON in the description of their Exif data.
        image_format: The format.

    Raises:
        ValueError: The fields are too long for the format's metadata (JPEG: 64 KB).
    """
    from PIL.PngImagePlugin import PngInfo

    text = json.dumps(fields, sort_keys=True)
    file = io.BytesIO()
    if image_format == "png":
        info = PngInfo()
        for name in _SHOWN:
            if name in fields:
                value = fields[name]
                shown = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
                info.add_itxt(name, printable(shown))
        info.add_text(_KEY, text)
        image.save(file, "PNG", pnginfo=info)
        return file.getvalue()
    from PIL import Image as PIL

    exif = PIL.Exif()
    exif[_IMAGE_DESCRIPTION] = text
    if image_format == "jpeg":
        image.convert("RGB").save(file, "JPEG", quality=95, exif=exif)
    else:
        image.save(file, "WEBP", lossless=True, exif=exif)
    return file.getvalue()


def read_fields(path: Path) -> tuple[Fields, tuple[int, int]] | None:
    """Read what `encode` has put into a file, and the image's width and height.

    Returns:
        None where the file is no image or none of ours.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            text = image.info.get(_KEY) or image.getexif().get(_IMAGE_DESCRIPTION)
            size = image.size
        fields = json.loads(text or "")
    except (OSError, ValueError, SyntaxError):  # PIL's for a broken PNG
        return None
    return (fields, size) if isinstance(fields, dict) and "index" in fields else None


def as_json(fields: Mapping[str, Any]) -> Fields:
    """Keep of fields what JSON can say, as reading it back gives it.

    Numbers of numpy and PyTorch become plain ones. None and what JSON has no word for, such as an
    image, is left out.
    """
    kept = {}
    for name, value in fields.items():
        if isinstance(value, (Tensor, np.ndarray, np.generic)):
            value = value.tolist()
        try:
            plain = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            continue
        if plain is not None:
            kept[name] = plain
    return kept


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Say in which fields a file differs from what it should be made from.

    Fields that are not among the expected are passed over: some are known only afterwards.
    """
    told = []
    for name, value in expected.items():
        there = found.get(name)
        if isinstance(value, dict) and isinstance(there, dict):
            told += differences(value, there)
            told += [f"{key} was {there[key]!r}" for key in there if key not in value]
        elif json.dumps(value, sort_keys=True) != json.dumps(there, sort_keys=True):
            told.append(f"{name} was {there!r} and is {value!r} now")
    return told


def printable(text: str) -> str:
    """Replace what UTF-8 cannot encode: halves of surrogate pairs, which JSON may have."""
    return text.encode("utf-8", "replace").decode("utf-8")
