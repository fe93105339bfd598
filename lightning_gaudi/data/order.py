"""Predictions in the data's own order, whatever the batches were."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch.distributed
from torch import Tensor

from lightning_gaudi.data.batching import Filler
from lightning_gaudi.errors import ConfigurationError


def in_data_order(
    predictions: Sequence[Any],
    sampler: Iterable[Sequence[int]],
    *,
    gather: bool = True,
    predictions_per_row: int = 1,
) -> list[Any]:
    """Split the predictions of batches into rows, and put these in the data set's order.

    Fillers are dropped. A row that came more than once, as a ``DistributedSampler`` repeats rows to
    even out its ranks, is kept once.

    Args:
        predictions: What ``predict_step`` returned for each batch of this rank: `split_rows` says
            of what kinds. Tensors lie on the CPU, as ``trainer.predict`` returns them.
        sampler: The batch sampler that made the batches, or the row numbers of each batch. Rows
            that no batch had (``limit_predict_batches``) are left out.
        gather: Whether to take the rows of all ranks together, where ``torch.distributed`` is
            initialised. All ranks must then call this.
        predictions_per_row: How many predictions there are of each row, one after the other.

    Returns:
        One prediction for each row. Tensors are views of the batches' tensors. With several
        predictions per row it is the list of them, or for mappings a dict of such lists.

    Raises:
        ConfigurationError: There are more or fewer predictions than batches, or a prediction does
            not have its batch's rows.
    """
    rows = rows_by_number(
        predictions, sampler, gather=gather, predictions_per_row=predictions_per_row
    )
    return list(rows.values())


def rows_by_number(
    predictions: Sequence[Any],
    sampler: Iterable[Sequence[int]],
    *,
    gather: bool = True,
    predictions_per_row: int = 1,
) -> dict[int, Any]:
    """Return what `in_data_order` does, with each row's number in the data set, ascending."""
    batches = list(sampler)
    if len(batches) != len(predictions):
        raise ConfigurationError(
            f"the order of the rows is not known: there are predictions for {len(predictions)} "
            f"batches, and row numbers for {len(batches)}. Give the batch sampler that the "
            "batches came from, in the epoch they came in (prediction takes drop_last=False)."
        )
    mine = list(zip(batches, predictions, strict=True))
    # Whole batches travel: their rows are views, and each would take the batch's memory along.
    everyone = _of_all_ranks(mine) if gather else [mine]
    rows: dict[int, Any] = {}
    for of_rank in everyone:
        for numbers, prediction in of_rank:
            split = split_rows(prediction, len(numbers) * predictions_per_row)
            if predictions_per_row > 1:
                split = _by_row(split, predictions_per_row)
            for number, row in zip(numbers, split, strict=True):
                if not isinstance(number, Filler):
                    rows.setdefault(int(number), row)
    return dict(sorted(rows.items()))


def _by_row(predictions: Sequence[Any], number: int) -> list[Any]:
    """Put each row's predictions together."""
    rows: list[Any] = []
    for start in range(0, len(predictions), number):
        row = predictions[start : start + number]
        is_columns = all(isinstance(each, dict) for each in row)
        rows.append({n: [each[n] for each in row] for n in row[0]} if is_columns else list(row))
    return rows


def split_rows(prediction: Any, num_rows: int) -> list[Any]:
    """Split a batch's prediction into one for each row.

    Args:
        prediction: A tensor or numpy array with the rows first; a list of a value for each row,
            whatever the values are; a mapping, tuple, dataclass or Transformers ``ModelOutput`` of
            such values, nested at will; or None.
        num_rows: How many rows the batch has.

    Returns:
        ``num_rows`` predictions of the same structure. Tensors have lost their first dimension and
        share the batch's memory; mappings are dicts, dataclasses and named tuples stay what they
        are.

    Raises:
        ConfigurationError: A value does not have ``num_rows`` rows; the message says which.
    """
    return _split(prediction, num_rows, "its result")


def _split(value: Any, num_rows: int, where: str) -> list[Any]:
    if value is None:
        return [None] * num_rows
    if isinstance(value, Tensor | np.ndarray):
        if not value.ndim or value.shape[0] != num_rows:
            raise _without_rows(where, f"of shape {list(value.shape)}", num_rows)
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        columns = _columns(fields, num_rows, where)
        # Through the class: a ModelOutput, which is a mapping too, fills itself in __init__.
        return [type(value)(**row) for row in columns]
    if isinstance(value, Mapping):
        return _columns(value, num_rows, where)
    if isinstance(value, list) and len(value) == num_rows:
        return list(value)
    # Not lists of parts: with as many rows as parts they would be taken for a list of the rows.
    if isinstance(value, tuple) and _has_parts(value):
        parts = [_split(part, num_rows, f"{where}[{i}]") for i, part in enumerate(value)]
        rows = list(zip(*parts, strict=True))
        if hasattr(value, "_fields"):
            return [cast(Any, type(value))(*row) for row in rows]
        return rows
    if isinstance(value, tuple) and len(value) == num_rows:
        return list(value)
    size = f", of length {len(value)}" if isinstance(value, list | tuple) else ""
    raise _without_rows(where, f"a {type(value).__name__}{size}", num_rows)


def _has_parts(value: tuple[Any, ...]) -> bool:
    """Whether a sequence holds parts that have rows each, and not a value for each row."""
    return len(value) > 0 and all(
        part is None
        or isinstance(part, Tensor | np.ndarray | Mapping | list | tuple)
        or dataclasses.is_dataclass(part)
        for part in value
    )


def _columns(values: Mapping[Any, Any], num_rows: int, where: str) -> list[dict[Any, Any]]:
    columns = {
        name: _split(value, num_rows, f"{where}[{name!r}]") for name, value in values.items()
    }
    return [{name: column[i] for name, column in columns.items()} for i in range(num_rows)]


def _without_rows(where: str, what: str, num_rows: int) -> ConfigurationError:
    return ConfigurationError(
        f"predict_step's result cannot be split into rows: its batch has {num_rows} rows, and "
        f"{where} is {what}. Return tensors with the rows first, or a list with a value for each "
        "row, alone or in a dict or tuple."
    )


def _of_all_ranks(mine: list[Any]) -> list[list[Any]]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
