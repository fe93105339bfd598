"""Labels of rows as numbers: classes by number or name, numbers to predict, several at once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lightning_gaudi.data.reading import Table
from lightning_gaudi.errors import ConfigurationError

IGNORED = -100
_HINT = " (where labels are numbers to predict, one of the training file has a decimal point: 2.0)"
Kind = Literal["class", "number", "several"]


@dataclass(frozen=True)
class Labels:
    """The labels of all rows.

    Attributes:
        values: int64 [N] of classes, float32 [N] of numbers, or float32 [N, L] of several.
    """

    values: npt.NDArray[Any]

    @property
    def ignored(self) -> npt.NDArray[Any]:
        """What stands for "no label" of a row: -100, or NaN where labels are floats."""
        if self.values.dtype.kind == "i":
            return np.asarray(IGNORED, dtype=np.int64)
        return np.full(self.values.shape[1:], math.nan, dtype=np.float32)


def collect_label_names(table: Table, column: str) -> list[str] | None:
    """Return the names that a column's labels have, sorted; None where they are numbers.

    Raises:
        ConfigurationError: A label is missing, or some are names and others are not.
    """
    values = _values(table, column, None)
    items = [value if isinstance(value, list) else [value] for value in values]
    names = {item for of_row in items for item in of_row if isinstance(item, str)}
    if not names:
        return None
    for i, of_row in enumerate(items):
        for item in of_row:
            if not isinstance(item, str):
                raise _wrong(table, column, i, item, "a name, as other labels of the column are")
    return sorted(names)


def are_numbers(table: Table, column: str) -> bool:
    """Whether a column's labels are numbers to predict, of which some may be whole.

    Raises:
        ConfigurationError: A label is missing.
    """
    return any(_kind(value) == "number" for value in _values(table, column, None))


def read_labels(
    table: Table, column: str, names: Sequence[str] | None, *, as_numbers: bool = False
) -> Labels:
    """Turn a column into labels.

    Whole numbers and booleans are classes, strings are classes by name, fractions are numbers to
    predict. A list of names becomes a 1 for each of ``names`` that it has and a 0 for the others; a
    list of numbers stays as it is. In CSV, where all values are strings, a column of numbers is
    one, and lists are written as in JSON.

    Args:
        table: The rows.
        column: The name of the column.
        names: The classes' names, in the order of their numbers.
        as_numbers: Whether whole numbers are numbers to predict too, as in a file whose training
            file has fractions.

    Raises:
        ConfigurationError: A label is missing, is of another kind than the others, or is not among
            ``names``; the message has the line.
    """
    values = _values(table, column, names)
    index = {name: i for i, name in enumerate(names or ())}
    kinds = [_kind(value) for value in values]
    if "several" in kinds:
        return Labels(_several(table, column, values, kinds, index))
    if names is None and (as_numbers or "number" in kinds):
        numbers = [_number(table, column, i, value) for i, value in enumerate(values)]
        return Labels(np.asarray(numbers, dtype=np.float32))
    classes = [_class(table, column, i, value, index) for i, value in enumerate(values)]
    return Labels(np.asarray(classes, dtype=np.int64))


def _values(table: Table, column: str, names: Sequence[str] | None) -> list[Any]:
    values = table.column(column)
    for i, value in enumerate(values):
        if value is None or value == "":
            raise ConfigurationError(
                f"the label in {table.place(i)} is missing: {column!r} is {value!r}. Give every "
                "row a label, or set label_column to null for data without labels."
            )
    # Where a name looks like a number, so may a wrong one, which is no class's number.
    if table.path.suffix.lower() == ".csv" and not _some_look_like_numbers(names or ()):
        parsed = [_parsed(value) for value in values]
        # All of them or none: a column of names may hold some that look like numbers.
        if all(not isinstance(value, str) for value in parsed):
            return parsed
    return values


def _some_look_like_numbers(names: Sequence[str]) -> bool:
    return any(not isinstance(_parsed(name), str) for name in names)


def _parsed(text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, int | float | list) else text


def _kind(value: Any) -> Kind:
    if isinstance(value, list):
        return "several"
    return "number" if isinstance(value, float) else "class"


def _number(table: Table, column: str, row: int, value: Any) -> float:
    if isinstance(value, int | float):
        return float(value)
    raise _wrong(table, column, row, value, "a number, as other labels of the column are")


def _class(table: Table, column: str, row: int, value: Any, index: dict[str, int]) -> int:
    if isinstance(value, int) and value >= 0 and (not index or value < len(index)):
        return int(value)
    if isinstance(value, str) and value in index:
        return index[value]
    if index:
        raise _wrong(table, column, row, value, f"one of label_names {list(index)}")
    if isinstance(value, str):
        raise ConfigurationError(
            f"labels such as {value!r} in {table.place(row)} are names, and their numbers are not "
            "known. Give label_names in the order of the model's classes, or the training file."
        )
    raise _wrong(table, column, row, value, f"a whole number of 0 or more, or a name{_HINT}")


def _several(
    table: Table, column: str, values: list[Any], kinds: list[Kind], index: dict[str, int]
) -> npt.NDArray[np.float32]:
    width = len(index)
    for i, (value, kind) in enumerate(zip(values, kinds, strict=True)):
        if kind != "several":
            raise _wrong(table, column, i, value, "a list, as other labels of the column are")
        is_of_names = all(isinstance(item, str) for item in value)
        if is_of_names and (index or value):
            for name in value:
                if name not in index:
                    raise _wrong(table, column, i, name, f"one of label_names {list(index)}")
            values[i] = [float(name in value) for name in index]
        elif not all(isinstance(item, int | float) for item in value):
            raise _wrong(table, column, i, value, "a list of numbers, or of names")
        width = width or len(values[i])
        if len(values[i]) != width:
            raise _wrong(table, column, i, value, f"a list of {width} numbers")
    return np.asarray(values, dtype=np.float32).reshape(len(values), width)


def _wrong(table: Table, column: str, row: int, value: Any, expected: str) -> ConfigurationError:
    return ConfigurationError(
        f"the label {value!r} in column {column!r} of {table.place(row)} is not {expected}. "
        "Correct the file or the setting."
    )
