"""`PredictionWriter`: every row once, in the data's order, in a file that is whole."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import training
from torch.utils.data import DataLoader

from lightning_gaudi.callbacks import PredictionOrder, PredictionWriter
from lightning_gaudi.data import BucketBatchSampler
from lightning_gaudi.errors import ConfigurationError

pytestmark = training.IGNORED_WARNINGS
LENGTHS = [3, 1, 2, 3, 1, 3, 2]


class Module(L.LightningModule):
    """Predicts of each row its number and twice that."""

    def __init__(self, result: Any = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.result = result

    def name_labels(self, labels: torch.Tensor) -> str:
        return "zero" if not labels else f"number {int(labels)}"

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if self.result is not None:
            return self.result(batch)
        vectors = torch.stack([batch, 2.0 * batch], 1)
        return {
            "logits": vectors * 0,
            "labels": batch,
            "embeddings": vectors,
            "text": ["é"] * len(batch),
        }


def loader(**settings: Any) -> DataLoader[Any]:
    settings = settings or {"batch_size": 2}
    return DataLoader(torch.arange(7), **settings)  # type: ignore[arg-type]


def bucketed() -> DataLoader[Any]:
    return loader(batch_sampler=BucketBatchSampler(LENGTHS, [1, 2, 3], 2))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("order", ["none", "before", "after"])
@pytest.mark.parametrize("data", [loader, bucketed])
def test_lines(data: Any, order: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "predictions.jsonl"
    writer = PredictionWriter(path)
    others = [PredictionOrder()]
    callbacks = {"none": [writer], "before": [*others, writer], "after": [writer, *others]}[order]
    training.trainer(callbacks=callbacks).predict(Module(), data())
    assert lines(path) == [
        {
            "row": i,
            "labels": i,
            "embeddings": [i, 2.0 * i],
            "text": "é",
            "label": f"number {i}" if i else "zero",
        }
        for i in range(7)
    ]
    assert list(path.parent.iterdir()) == [path]


def test_arrays(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    writer = PredictionWriter(path, columns=["embeddings"])

    def result(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"embeddings": torch.stack([batch, 2 * batch], 1).bfloat16()}

    training.trainer(callbacks=[writer]).predict(Module(result), bucketed())
    with np.load(path) as found:
        assert sorted(found) == ["embeddings", "row"]
        assert found["embeddings"].tolist() == [[i, 2 * i] for i in range(7)]
        assert found["row"].tolist() == list(range(7))


def test_columns_and_results_that_are_no_dict(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    writer = PredictionWriter(path, columns=["logits", "label"])
    training.trainer(callbacks=[writer]).predict(Module(), loader())
    assert lines(path)[1] == {"row": 1, "logits": [0.0, 0.0], "label": "number 1"}
    writer = PredictionWriter(path)
    training.trainer(callbacks=[writer]).predict(Module(lambda batch: batch * 3), loader())
    assert lines(path) == [{"row": i, "prediction": 3 * i} for i in range(7)]


def test_lines_of_numpy_s_numbers_and_of_half_characters(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path / "predictions.jsonl")

    def result(batch: torch.Tensor) -> dict[str, Any]:
        return {"n": batch.cpu().numpy(), "text": ["\ud83d\n"] * len(batch)}

    training.trainer(callbacks=[writer]).predict(Module(result), bucketed())
    assert lines(writer.path) == [{"row": i, "n": i, "text": "\ud83d\n"} for i in range(7)]


@pytest.mark.parametrize("gather", ["first", "none"])
def test_a_file_of_one_rank_s_rows_is_refused(gather: Any, tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path / "predictions.jsonl")
    callbacks = [PredictionOrder(gather), writer]
    trainer: Any = SimpleNamespace(world_size=2, callbacks=callbacks)
    if gather == "none":
        with pytest.raises(
            ConfigurationError, match=r"first rank only.*Put PredictionWriter first"
        ):
            writer.on_predict_start(trainer, Module())
        callbacks.reverse()
    writer.on_predict_start(trainer, Module())
    trainer.world_size = 1
    writer.on_predict_start(trainer, Module())


def test_each_dataloader_has_a_file(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path / "found.jsonl", columns=["labels"])
    training.trainer(callbacks=[writer]).predict(Module(), [loader(), bucketed()])
    for name in ("found.jsonl", "found-1.jsonl"):
        assert [line["labels"] for line in lines(tmp_path / name)] == list(range(7))


def test_an_unfinished_file_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text("as it was")
    writer = PredictionWriter(path)
    module = Module(lambda batch: {"odd": [object() for _ in batch]})
    with pytest.raises(ConfigurationError, match=r"cannot write row 0 as JSON.*columns=\[...\]"):
        training.trainer(callbacks=[writer]).predict(module, loader())
    assert path.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"writes \.jsonl and \.npz files, but path is"):
        PredictionWriter(tmp_path / "predictions.csv")
    with pytest.raises(ConfigurationError, match=r"columns must be a list of names"):
        PredictionWriter(tmp_path / "predictions.jsonl", columns="labels")
    writer = PredictionWriter(tmp_path / "predictions.jsonl", columns=["label", "lables"])
    with pytest.raises(ConfigurationError, match="have no 'lables', but 'logits', 'labels', "):
        training.trainer(callbacks=[writer]).predict(Module(), loader())
    writer = PredictionWriter(tmp_path / "predictions.npz")
    module = Module(lambda batch: {"ids": [torch.arange(int(i)) for i in batch]})
    with pytest.raises(ConfigurationError, match="'ids' has another shape in some rows"):
        training.trainer(callbacks=[writer]).predict(module, loader())
    for value in (None, [[1], [2, 3]], {"a": 1}):
        module = Module(lambda batch, value=value: {"odd": [value for _ in batch]})
        with pytest.raises(ConfigurationError, match="'odd' has values that are no numbers and no"):
            training.trainer(callbacks=[writer]).predict(module, loader())
    module = Module(lambda batch: {"row": batch})
    with pytest.raises(
        ConfigurationError, match=r"has a 'row' of its own\. Give that another name"
    ):
        training.trainer(callbacks=[writer]).predict(module, loader())
    assert not list(tmp_path.iterdir())
