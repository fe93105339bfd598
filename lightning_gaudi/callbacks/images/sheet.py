"""Contact sheets: many small images on one, each with its index and prompt below."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_gaudi.callbacks.images.metadata import printable

if TYPE_CHECKING:
    from PIL.Image import Image

_CELL_PX = 128
_CAPTION_PX = 16
_GAP_PX = 4
_MAX_ROWS = 20


def contact_sheets(folder: Path, entries: Sequence[Mapping[str, Any]], columns: int) -> list[bytes]:
    """Make contact sheets, as PNG files' contents.

    Args:
        folder: Where the images lie.
        entries: What the index says of each image: ``file``, ``index`` and, where there is one,
            ``prompt`` or ``class_labels``.
        columns: Images side by side. A sheet has up to 20 rows of them.
    """
    number = columns * _MAX_ROWS
    return [
        _sheet(folder, entries[start : start + number], columns)
        for start in range(0, len(entries), number)
    ]


def _sheet(folder: Path, entries: Sequence[Mapping[str, Any]], columns: int) -> bytes:
    from PIL import Image, ImageDraw, ImageFont

    columns = min(columns, len(entries))
    rows = -(-len(entries) // columns)
    width, height = _CELL_PX + _GAP_PX, _CELL_PX + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (columns * width + _GAP_PX, rows * height + _GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    font: Any = ImageFont.load_default()
    is_latin = not isinstance(font, ImageFont.FreeTypeFont)
    for place, entry in enumerate(entries):
        left = _GAP_PX + place % columns * width
        top = _GAP_PX + place // columns * height
        with Image.open(folder / entry["file"]) as image:
            small = _fitted(image)
        x, y = (_CELL_PX - small.width) // 2, (_CELL_PX - small.height) // 2
        sheet.paste(small, (left + x, top + y))
        caption = _caption(entry)
        if is_latin:  # PIL's font without FreeType raises for other letters
            caption = caption.encode("latin-1", "replace").decode("latin-1")
        while caption and font.getlength(caption) > _CELL_PX:
            caption = caption[: min(len(caption) - 1, 60)]
        draw.text((left, top + _CELL_PX), caption, fill="black", font=font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _fitted(image: Image) -> Image:
    """An image as large as a cell takes it, over white. Small images are shown in whole pixels."""
    from PIL import Image as PIL

    scale = _CELL_PX / max(image.size)
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    how = PIL.Resampling.NEAREST if scale > 1 else PIL.Resampling.LANCZOS
    rgba = image.convert("RGBA").resize(size, how)
    white = PIL.new("RGBA", size, "white")
    return PIL.alpha_composite(white, rgba).convert("RGB")


def _caption(entry: Mapping[str, Any]) -> str:
    of = entry.get("prompt", entry.get("class_labels", ""))
    return " ".join(
        printable(f"{entry['index']}: {of}" if of != "" else str(entry["index"])).split()
    )
