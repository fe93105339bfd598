"""Rows for image pipelines from a file: each column's type, and images by their paths."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from lightning_gaudi.data.batching import Filler
from lightning_gaudi.data.reading import Table, read_table
from lightning_gaudi.errors import ConfigurationError

Row = dict[str, Any]

_TEXTS = (
    "negative_prompt",
    "negative_prompt_2",
    "negative_prompt_3",
    "prompt",
    "prompt_2",
    "prompt_3",
)
# Whole numbers, and the least that each can be.
_WHOLE_NUMBERS = {
    "class_labels": 0,
    "clip_skip": 0,
    "height": 1,
    "num_inference_steps": 1,
    "width": 1,
}
_NUMBERS = ("eta", "guidance_rescale", "guidance_scale", "image_guidance_scale", "strength")
# What PIL calls the kind of image that a pipeline takes there.
_IMAGES = {"control_image": "RGB", "image": "RGB", "mask_image": "L"}
# What an image is made of: rows of one file have all of them the same ones.
_CONDITIONS = ("prompt", "class_labels")
# Fields that the rows or the sampler's prediction have by themselves.
_RESERVED = ("image_number", "images", "index", "is_filler", "settings")

KNOWN_COLUMNS = tuple(sorted((*_TEXTS, *_WHOLE_NUMBERS, *_NUMBERS, *_IMAGES, "seed")))
"""Columns that a file may have: arguments of pipelines, and ``seed``."""


class PromptRows(Dataset[Row]):
    """Rows as `DiffusionSampler` takes them, each with its number in ``index``.

    The row of a `Filler` has ``is_filler``: no image is made for it. Image files are opened when a
    row is asked for, and the row then also has their ``..._sha256``, which with the ``..._path``
    tells later from what an image was made.

    Args:
        rows: The fields of each row. Those in `files` hold paths.
        files: Columns of image files, with the mode in which PIL opens them.
    """

    def __init__(self, rows: Sequence[Row], files: Mapping[str, str]) -> None:
        self._rows = rows
        self._files = dict(files)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._rows)

    def __getitem__(self, number: int) -> Row:
        """Give a row.

        Raises:
            ConfigurationError: An image file is gone or is no image.
        """
        row = {"index": int(number), **self._rows[number]}
        for name, mode in self._files.items():
            if name in row:
                row[name], row[f"{name}_sha256"] = _open_image(row[name], mode)
        if isinstance(number, Filler):
            row["is_filler"] = True
        return row


def count_rows(number: int) -> PromptRows:
    """Make rows with nothing but their number, for pipelines that take no condition."""
    return PromptRows([{}] * number, {})


def read_prompts(
    path: str | Path, *, prompt_column: str = "prompt", extra_columns: Sequence[str] = ()
) -> PromptRows:
    """Read the rows of a file.

    Args:
        path: A ``.txt`` with a prompt a line (empty lines are passed over), a ``.csv`` with a
            header (an empty cell is a value that is not given, except an empty prompt), or a
            ``.jsonl`` with an object a line (``null`` is a value that is not given).
        prompt_column: What the file calls the prompt.
        extra_columns: Further columns, which are handed on as they are.

    Raises:
        ConfigurationError: There is no such file or it has no rows, a column is unknown, or a value
            cannot be; the message has the line.
    """
    check_extra_columns(extra_columns)
    table = read_table(path, text_column=prompt_column)
    if table.path.suffix.lower() == ".txt":
        kept = [i for i, row in enumerate(table.rows) if row[prompt_column].strip()]
        table = Table(table.path, [table.rows[i] for i in kept], [table.lines[i] for i in kept])
    if not len(table):
        raise ConfigurationError(
            f"{table.path} has no prompts. Write one a line (.txt), or rows with a column "
            f"{prompt_column!r} (.csv, .jsonl)."
        )
    rows = [
        _checked_row(table, number, prompt_column, frozenset(extra_columns))
        for number in range(len(table))
    ]
    for name in _CONDITIONS:
        having = [number for number, row in enumerate(rows) if name in row]
        if having and len(having) < len(rows):
            lacking = next(number for number, row in enumerate(rows) if name not in row)
            shown = prompt_column if name == "prompt" else name
            raise ConfigurationError(
                f"{table.place(lacking)} has no {shown!r}, but {table.place(having[0])} has one. "
                "Give it to all rows or to none."
            )
    return PromptRows(rows, _IMAGES)


def check_extra_columns(names: Sequence[str]) -> None:
    """Check names of columns that are to be handed on.

    Raises:
        ConfigurationError: One means something else.
    """
    for name in names:
        if name in KNOWN_COLUMNS or name in _RESERVED:
            raise ConfigurationError(
                f"extra_columns has {name!r}, which is no further column: it means something to "
                "the sampler. Leave it out"
                + ("." if name in KNOWN_COLUMNS else ", and call the file's column otherwise.")
            )


def _checked_row(
    table: Table, number: int, prompt_column: str, extra_columns: frozenset[str]
) -> Row:
    is_csv = table.path.suffix.lower() == ".csv"
    row: Row = {}
    for column, value in table.rows[number].items():
        name = "prompt" if column == prompt_column else column
        is_known = name in KNOWN_COLUMNS and (column == prompt_column or column != "prompt")
        if not is_known and column not in extra_columns:
            known = sorted({*KNOWN_COLUMNS, prompt_column} - ({"prompt"} - {prompt_column}))
            raise ConfigurationError(
                f"{table.place(number)}: the column {column!r} is unknown. Known are "
                f"{', '.join(known)}. Name a column that is only to be handed on in "
                "extra_columns."
            )
        is_missing = value is None or (is_csv and value == "" and name != "prompt")
        if is_missing:
            continue
        row[name] = _value(table, number, column, name, value) if is_known else value
        if name in _IMAGES:
            row[f"{name}_path"] = value
    return row


def _value(table: Table, number: int, column: str, name: str, value: Any) -> Any:
    if name in _TEXTS:
        return _converted(table, number, column, value, _text, "a text")
    if name in _WHOLE_NUMBERS:
        least = _WHOLE_NUMBERS[name]
        expected = f"a whole number of {least} or more"
        return _converted(table, number, column, value, partial(_count, least=least), expected)
    if name in _NUMBERS:
        return _converted(table, number, column, value, _number, "a number")
    if name == "seed":
        expected = "a whole number from 0 to 2**63 - 1, or a list of such"
        return _converted(table, number, column, value, _seed, expected)
    path = _converted(table, number, column, value, _text, "the path of an image file")
    path = table.path.parent / path
    if not path.is_file():
        raise ConfigurationError(
            f"{table.place(number)}: {column} is {value!r}, but there is no file "
            f"{path.absolute()}. Paths begin in the folder of {table.path.name}."
        )
    return path


def _converted(
    table: Table,
    number: int,
    column: str,
    value: Any,
    convert: Callable[[Any], Any],
    expected: str,
) -> Any:
    try:
        return convert(value)
    except ValueError:
        raise ConfigurationError(
            f"{table.place(number)}: {column} must be {expected}, but it is {value!r}."
        ) from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _whole_number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError
    return int(value)


def _count(value: Any, least: int) -> int:
    number = _whole_number(value)
    if number < least:
        raise ValueError
    return number


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _seed(value: Any) -> int | list[int]:
    if isinstance(value, list):
        return [_one_seed(each) for each in value]
    return _one_seed(value)


def _one_seed(value: Any) -> int:
    seed = _whole_number(value)
    if not 0 <= seed < 2**63:
        raise ValueError
    return seed


def _open_image(path: Path, mode: str) -> tuple[Any, str]:
    """Open an image file; also tells the SHA-256 of its bytes."""
    from PIL import Image

    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            return image.convert(mode), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise ConfigurationError(
            f"cannot open {path} as an image: {error}. Check that the file is whole, and in a "
            "format that PIL knows."
        ) from error
