"""`PredictionWriter`: predictions in a file, in the data's order."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from typing_extensions import override

from lightning_gaudi.callbacks.prediction_order import PredictionOrder
from lightning_gaudi.data.order import rows_by_number
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.whole_files import whole_file

Rows = dict[int, Any]


class PredictionWriter(BasePredictionWriter):
    """Writes what ``trainer.predict`` predicts, one entry for each row, in the data set's order.

    A ``.jsonl`` file has an object a line: ``row``, the row's number in the data set, and what
    ``predict_step`` returned for it; ``label`` is the name of the predicted label, or a list of
    names, where the module knows names. A ``.npz`` file has an array for each of these, rows first.
    Rows of all ranks go into one file, which the first rank writes. The file is there only when it
    is whole. With several dataloaders the files after the first have ``-1`` and so on in their
    names.

    Args:
        path: The file; directories are made.
        columns: Which values to write; all but ``logits`` by default. A ``predict_step`` that
            returns no dict has one column, ``prediction``.

    Raises:
        ConfigurationError: The file is of another kind. When a prediction on several ranks starts:
            ``PredictionOrder(gather="none")`` comes before it. At a prediction's end: there is no
            such column, the rows' order is not known, or a value is not for such a file.
    """

    def __init__(self, path: str | Path, columns: Sequence[str] | None = None) -> None:
        super().__init__(write_interval="epoch")  # so that Lightning keeps the row numbers
        self.path = Path(path)
        if self.path.suffix not in _WRITERS:
            raise ConfigurationError(
                f"PredictionWriter writes {' and '.join(_WRITERS)} files, but path is "
                f"{os.fspath(path)!r}."
            )
        if isinstance(columns, str):
            raise ConfigurationError(
                f"columns must be a list of names, but it is {columns!r}: write [{columns!r}]."
            )
        self.columns = None if columns is None else tuple(columns)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out before the first batch whether this will be handed all rows."""
        if trainer.world_size > 1 and any(
            order.gather == "none" for order in self._orders_before(trainer)
        ):
            raise ConfigurationError(
                "PredictionWriter would write the rows of the first rank only, since "
                "PredictionOrder(gather='none') comes before it. Put PredictionWriter first in "
                "callbacks."
            )

    @override
    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Write the file of each dataloader."""
        name_labels = getattr(pl_module, "name_labels", None)
        loaders = [predictions] if len(batch_indices) == 1 else predictions
        for index, (of_loader, batches) in enumerate(zip(loaders, batch_indices, strict=True)):
            rows = self._rows(trainer, pl_module, of_loader, batches)
            if trainer.is_global_zero:
                behind = f"-{index}" if index else ""
                path = self.path.with_stem(self.path.stem + behind)
                entries = {number: self._entry(row, name_labels) for number, row in rows.items()}
                with whole_file(path) as file:
                    _WRITERS[path.suffix](file, entries)
        trainer.strategy.barrier("PredictionWriter")

    def _rows(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batches: Sequence[Any],
    ) -> Rows:
        if self._orders_before(trainer):
            # Rows already, each with a batch of its own number.
            return {numbers[0]: row for numbers, row in zip(batches, predictions, strict=True)}
        per_row = getattr(pl_module, "predictions_per_row", 1)
        return rows_by_number(predictions, batches, predictions_per_row=per_row)

    def _orders_before(self, trainer: Trainer) -> list[PredictionOrder]:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        before = callbacks[: callbacks.index(self)]
        return [callback for callback in before if isinstance(callback, PredictionOrder)]

    def _entry(self, row: Any, name_labels: Callable[[Any], Any] | None) -> dict[str, Any]:
        values = dict(row) if isinstance(row, Mapping) else {"prediction": row}
        if name_labels is not None and "labels" in values and "label" not in values:
            label = name_labels(values["labels"])
            if label is not None:
                values["label"] = label
        if "row" in values:
            raise ConfigurationError(
                "PredictionWriter writes a row's number as 'row', and predict_step's result has a "
                "'row' of its own. Give that another name."
            )
        if self.columns is None:
            return {name: value for name, value in values.items() if name != "logits"}
        missing = [name for name in self.columns if name not in values]
        if missing:
            raise ConfigurationError(
                f"PredictionWriter: predictions have no {missing[0]!r}, but "
                f"{', '.join(map(repr, values)) or 'nothing'}."
            )
        return {name: values[name] for name in self.columns}


def _write_lines(file: BinaryIO, entries: Rows) -> None:
    for number, entry in entries.items():
        values = {"row": number, **{name: _plain(value) for name, value in entry.items()}}
        try:
            line = json.dumps(values, ensure_ascii=False) + "\n"
        except TypeError as error:
            raise ConfigurationError(
                f"PredictionWriter cannot write row {number} as JSON: {error}. Choose what to "
                f"write with columns=[...], of {', '.join(map(repr, entry))}."
            ) from error
        file.write(line.encode("utf-8", "backslashreplace"))  # halves of characters, as JSON does


def _write_arrays(file: BinaryIO, entries: Rows) -> None:
    columns: dict[str, Any] = {"row": np.asarray(list(entries), dtype=np.int64)}
    for name in next(iter(entries.values()), {}):
        values = [_array(entry[name]) for entry in entries.values()]
        if any(value.dtype.hasobject for value in values):
            raise ConfigurationError(
                f"PredictionWriter: {name!r} has values that are no numbers and no texts, so it is "
                "no array. Write a .jsonl file, or leave it out with columns=[...]."
            )
        shapes = {value.shape for value in values}
        if len(shapes) > 1:
            raise ConfigurationError(
                f"PredictionWriter: {name!r} has another shape in some rows ({min(shapes)} and "
                f"{max(shapes)}), so it is no array. Write a .jsonl file, or leave it out with "
                "columns=[...]."
            )
        columns[name] = np.stack(values)
    np.savez(file, **columns)


_WRITERS: dict[str, Callable[[BinaryIO, Rows], None]] = {
    ".jsonl": _write_lines,
    ".npz": _write_arrays,
}


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _array(value: Any) -> Any:
    if isinstance(value, Tensor):
        # numpy has no bfloat16.
        return (value.float() if value.is_floating_point() else value).numpy()
    try:
        return np.asarray(value)
    except ValueError:  # lists of several lengths inside
        return np.asarray(value, dtype=object)
