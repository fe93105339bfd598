"""Reads tables of text: JSON lines, CSV, or a text a line. Errors name the file and the line."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_gaudi.errors import ConfigurationError

SUFFIXES = (".jsonl", ".csv", ".txt")


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
        path: The file.
        rows: A dict of values by column name, for each row.
        lines: The line of the file that each row ends at, from 1.
    """

    path: Path
    rows: list[dict[str, Any]]
    lines: list[int]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def place(self, row: int) -> str:
        """Say where a row is, for messages."""
        return f"{self.path}, line {self.lines[row]}"

    def column(self, name: str) -> list[Any]:
        """Give a column's values.

        Raises:
            ConfigurationError: A row lacks the column; the message lists those it has.
        """
        for i, row in enumerate(self.rows):
            if name not in row:
                raise ConfigurationError(
                    f"there is no column {name!r} in {self.place(i)}: it has {sorted(row)}. Name "
                    "one of these, for example with text_column or label_column."
                )
        return [row[name] for row in self.rows]


def read_table(path: str | Path, *, text_column: str = "text") -> Table:
    """Read a file of rows, by its suffix.

    ``.jsonl`` has a JSON object a line; empty lines are passed over. ``.csv`` has a header, and all
    its values are strings. ``.txt`` has a text a line, empty ones too, so that rows are lines.

    Args:
        path: The file, in UTF-8.
        text_column: What the only column of a ``.txt`` is called.

    Raises:
        ConfigurationError: There is no such file, its suffix is unknown, or it is not what its
            suffix says; the message has the line.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigurationError(
            f"cannot read {path}: its suffix {path.suffix!r} is unknown. Known are "
            f"{', '.join(SUFFIXES)}: JSON lines, CSV with a header, and a text a line."
        )
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is no such file"
        raise ConfigurationError(f"cannot read {path.absolute()}: {what}. Check the path.")
    text = _decoded(path)
    if path.suffix.lower() == ".jsonl":
        return _from_pairs(path, _read_json_lines(path, text))
    if path.suffix.lower() == ".csv":
        return _from_pairs(path, _read_csv(path, text))
    # Not splitlines(), which also ends lines at marks that a text may have inside.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not lines[-1]:
        lines.pop()
    return _from_pairs(path, ((i, {text_column: line}) for i, line in enumerate(lines, start=1)))


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path}, line {line} is not UTF-8: byte 0x{data[error.start]:02x} at position "
            f"{error.start} of the file. Convert the file, for example with "
            f"`iconv -f latin1 -t utf-8 {path.name}`."
        ) from error


def _from_pairs(path: Path, pairs: Iterator[tuple[int, dict[str, Any]]]) -> Table:
    lines, rows = [], []
    for line, row in pairs:
        lines.append(line)
        rows.append(row)
    return Table(path, rows, lines)


def _read_json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigurationError(
                f"{path}, line {number} is no JSON: {error.msg} at column {error.colno}: "
                f"{line[:60]!r}. Write one JSON object a line."
            ) from error
        if not isinstance(row, dict):
            raise ConfigurationError(
                f"{path}, line {number} is a JSON {type(row).__name__}, not an object: "
                f'{line[:60]!r}. Write one object a line, such as {{"text": "..."}}.'
            )
        yield number, row


def _read_csv(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Long texts are what such files are for; the limit is the csv module's, for all of the process.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = _header(path, next(reader, []))
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise ConfigurationError(
                    f"{path}, line {reader.line_num} has {len(values)} columns, but the header has "
                    f"{len(header)}: {header}. Quote values that hold commas or line breaks, and "
                    "write every column."
                )
            yield reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise ConfigurationError(
            f"{path}, line {reader.line_num} is no CSV: {error}. Check its quotes."
        ) from error
    finally:
        csv.field_size_limit(limit)


def _header(path: Path, names: Sequence[str]) -> list[str]:
    if not names or not all(name.strip() for name in names) or len(set(names)) < len(names):
        raise ConfigurationError(
            f"{path}, line 1 is no header: {list(names)}. A CSV begins with a line of column "
            "names, each once, such as text,label."
        )
    return list(names)
