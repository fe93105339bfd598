"""Fit, validation and prediction over ragged text on two cards, with all callbacks at once.

All is done twice, on the same objects. The weights are those of stock DDP on the CPU, and every row
comes back once, in the file's order, with the values that the stock model gives for it alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import training
from data.texts import WORDS, text, word_tokenizer, write
from distributed.jobs import run_ranks, values
from lightning.pytorch.callbacks import BasePredictionWriter
from training import trainer
from transformers import BertConfig, BertForSequenceClassification

from lightning_gaudi import CompileMonitor, GaudiStrategy, HPUGraphCallback, PredictionOrder
from lightning_gaudi.callbacks import PredictionWriter
from lightning_gaudi.data import TextDataModule
from lightning_gaudi.modules import TransformersModule

pytestmark = training.IGNORED_WARNINGS

LENGTHS = [3, 9, 4, 5, 8, 2, 9, 20, 1, 12, 7, 30, 6, 2, 17, 11, 5, 5, 3, 26, 8, 14, 1]
EPOCHS = (2, 4)  # where the first fit ends, and the second
HEAD = "model.classifier.weight"


def classifier() -> TransformersModule:
    """A tiny BERT without dropout, whose random numbers differ from device to device."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=0.5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return TransformersModule(
        BertForSequenceClassification(config), learning_rate=1e-3, optimizer="adamw"
    )


def write_texts(folder: Path) -> Path:
    rows = [{"text": text(n, i), "label": i % 3 // 2} for i, n in enumerate(LENGTHS)]
    return write(folder / "texts.jsonl", rows)


def data(path: Path) -> TextDataModule:
    files = dict.fromkeys(("train", "validate", "predict"), path)
    return TextDataModule(word_tokenizer(), num_buckets=3, batch_size=2, **files)


class Batches(BasePredictionWriter):
    """What Lightning hands to a writer of the user's on each rank."""

    def __init__(self) -> None:
        super().__init__("batch")
        self.rows: list[int] = []

    def write_on_batch_end(
        self, trainer: Any, module: Any, prediction: Any, indices: Any, *args: Any
    ) -> None:
        assert len(prediction["logits"]) == len(indices)
        self.rows += indices


def run_all(folder: Path, path: Path, accelerator: str, devices: int) -> list[dict[str, Any]]:
    """Fit, validate and predict, twice; on the HPU with graphs, a monitor and writers."""
    module, rows = classifier(), data(path)
    batches, graphs = Batches(), HPUGraphCallback(("fit", "validate", "predict"))
    monitor = CompileMonitor(dirpath=folder)
    callbacks: list[Any] = []
    if accelerator == "hpu":
        writer = PredictionWriter(folder / "predictions.jsonl")
        callbacks = [graphs, monitor, batches, writer, PredictionOrder()]
    run = trainer(
        accelerator,
        strategy=GaudiStrategy() if accelerator == "hpu" else "ddp",
        devices=devices,
        callbacks=callbacks,
        gradient_clip_val=0.5,
    )
    return [run_once(run, module, rows, num_epochs, folder) for num_epochs in EPOCHS]


def run_once(
    run: Any, module: TransformersModule, rows: TextDataModule, num_epochs: int, folder: Path
) -> dict[str, Any]:
    run.fit_loop.max_epochs = num_epochs
    run.fit(module, rows)
    (scores,) = run.validate(module, rows, verbose=False)
    found: dict[str, Any] = {
        "scores": scores,
        "state": {name: value.cpu().clone() for name, value in module.state_dict().items()},
    }
    if isinstance(run.strategy, GaudiStrategy):
        graphs, monitor, batches = run.callbacks[:3]
        batches.rows = []
        found["logits"] = torch.stack([row["logits"] for row in run.predict(module, rows)])
        found["own_rows"] = batches.rows
        if run.is_global_zero:
            lines = (folder / "predictions.jsonl").read_text().splitlines()
            found["written"] = [json.loads(line)["row"] for line in lines]
        found["stats"] = {
            name: getattr(graphs.stats, name) for name in ("captures", "replays", "evictions")
        }
        found["stages"] = set(monitor.facts["stages"])
        found["world"] = (monitor.facts["rank"], monitor.facts["world_size"])
    return found


def on_stock_model(state: dict[str, Any]) -> torch.Tensor:
    """Logits of each text alone, by the stock model on the CPU."""
    module = classifier()
    module.load_state_dict(state)
    tokenizer = word_tokenizer()
    rows = []
    with torch.no_grad():
        for i, n in enumerate(LENGTHS):
            inputs = tokenizer(text(n, i), return_tensors="pt")
            rows.append(module.model.eval()(**inputs).logits[0])
    return torch.stack(rows)


@pytest.mark.slow
def test_a_whole_run_over_ragged_text(tmp_path: Path) -> None:
    path = write_texts(tmp_path)
    both = values(run_ranks(tmp_path, run_all, tmp_path, path, "hpu", 2))
    (tmp_path / "cpu").mkdir()
    stock, _ = values(run_ranks(tmp_path / "cpu", run_all, tmp_path / "cpu", path, "cpu", 2))
    before = classifier().state_dict()
    for number, (first, second, other) in enumerate(zip(*both, stock, strict=True)):
        assert not torch.equal(first["state"][HEAD], before[HEAD])
        before = first["state"]
        torch.testing.assert_close(first["state"], other["state"], atol=1e-5, rtol=1e-4)
        assert all(torch.equal(first["state"][name], second["state"][name]) for name in before)
        assert first["scores"] == second["scores"]
        assert first["scores"] == pytest.approx(other["scores"], rel=1e-4)

        # Every row once, in order, on both ranks and in the file; equal to the stock model's.
        expected = on_stock_model(first["state"])
        for of_rank in (first, second):
            torch.testing.assert_close(of_rank["logits"], expected, atol=1e-5, rtol=1e-5)
        assert first["written"] == list(range(len(LENGTHS)))
        # A user's own writer sees its rank's batches: all rows, and those that fill batches up.
        assert {*first["own_rows"], *second["own_rows"]} == set(range(len(LENGTHS)))

        for rank, of_rank in enumerate((first, second)):
            assert of_rank["world"] == (rank, 2)
            assert of_rank["stages"] >= {"fit", "validate", "predict"}
            stats = of_rank["stats"]
            # Three buckets of each: training, its validation, the one behind it, prediction.
            assert stats["captures"] == 12 * (number + 1)
            assert stats["replays"] > stats["captures"]
            assert stats["evictions"] == 0
    for rank in range(2):
        assert (tmp_path / f"compile_monitor.rank{rank}.json").exists()


@pytest.mark.slow
def test_on_one_card_all_is_the_same(tmp_path: Path) -> None:
    """Predictions of two cards equal those of one to the last places."""
    path = write_texts(tmp_path)
    for found in run_all(tmp_path, path, "hpu", 1):
        expected = on_stock_model(found["state"])
        torch.testing.assert_close(found["logits"], expected, atol=1e-5, rtol=1e-5)
