"""`PredictionWriter`: predictions in a file, in the data's order."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from typing_extensions import override

from lightning_gaudi.callbacks.prediction_order import PredictionOrder
from lightning_gaudi.data.order import rows_by_number
from lightning_gaudi.errors import ConfigurationError

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
        ConfigurationError: The file is of another kind. At a prediction's end: there is no such
            column, the rows' order is not known, or a value is not for such a file.
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
            rows = self._rows(trainer, of_loader, batches)
            if trainer.is_global_zero:
                behind = f"-{index}" if index else ""
                path = self.path.with_stem(self.path.stem + behind)
                entries = {number: self._entry(row, name_labels) for number, row in rows.items()}
                _write_whole(path, entries)
        trainer.strategy.barrier("PredictionWriter")

    def _rows(self, trainer: Trainer, predictions: Sequence[Any], batches: Sequence[Any]) -> Rows:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        before = callbacks[: callbacks.index(self)]
        if any(isinstance(callback, PredictionOrder) for callback in before):
            # Rows already, each with a batch of its own number.
            return {numbers[0]: row for numbers, row in zip(batches, predictions, strict=True)}
        return rows_by_number(predictions, batches)

    def _entry(self, row: Any, name_labels: Callable[[Any], Any] | None) -> dict[str, Any]:
        values = dict(row) if isinstance(row, Mapping) else {"prediction": row}
        if name_labels is not None and "labels" in values and "label" not in values:
            label = name_labels(values["labels"])
            if label is not None:
                values["label"] = label
        if self.columns is None:
            return {name: value for name, value in values.items() if name != "logits"}
        missing = [name for name in self.columns if name not in values]
        if missing:
            raise ConfigurationError(
                f"PredictionWriter: predictions have no {missing[0]!r}, but "
                f"{', '.join(map(repr, values)) or 'nothing'}."
            )
        return {name: values[name] for name in self.columns}


def _write_lines(file: Path, entries: Rows) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for number, entry in entries.items():
            values = {"row": number, **{name: _plain(value) for name, value in entry.items()}}
            try:
                lines.write(json.dumps(values, ensure_ascii=False) + "\n")
            except TypeError as error:
                raise ConfigurationError(
                    f"PredictionWriter cannot write row {number} as JSON: {error}. Choose what to "
                    f"write with columns=[...], of {', '.join(map(repr, entry))}."
                ) from error


def _write_arrays(file: Path, entries: Rows) -> None:
    columns: dict[str, Any] = {"row": np.asarray(list(entries), dtype=np.int64)}
    for name in next(iter(entries.values()), {}):
        values = [_array(entry[name]) for entry in entries.values()]
        shapes = {value.shape for value in values}
        if len(shapes) > 1:
            raise ConfigurationError(
                f"PredictionWriter: {name!r} has another shape in some rows ({min(shapes)} and "
                f"{max(shapes)}), so it is no array. Write a .jsonl file, or leave it out with "
                "columns=[...]."
            )
        columns[name] = np.stack(values)
    with file.open("wb") as archive:
        np.savez(archive, **columns)


_WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    ".jsonl": _write_lines,
    ".npz": _write_arrays,
}


def _write_whole(path: Path, entries: Rows) -> None:
    """Write beside the file, and put it in place when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _WRITERS[path.suffix](unfinished, entries)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Tensor | np.ndarray):
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
    return np.asarray(value)
