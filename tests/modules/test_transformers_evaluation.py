"""Validation and test: metrics of the whole data set, whatever its batches are filled up with."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics as tm
import training
from modules.tasks_cases import batches, make, stock_of
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_gaudi import HPUGraphCallback
from lightning_gaudi.data import BucketBatchSampler, BucketCollator

pytestmark = training.IGNORED_WARNINGS
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def loader(data: list[dict[str, Tensor]]) -> DataLoader[Any]:
    return DataLoader(data, batch_size=None)


def rows(batch: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return {name: value[:count] if value.ndim else value for name, value in batch.items()}


def filled(batch: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """A batch of which only some rows count; the others repeat the first, without labels."""
    batch = {name: value.clone() for name, value in batch.items()}
    for name, value in batch.items():
        is_label = name in ("labels", "start_positions", "end_positions")
        none = torch.nan if value.is_floating_point() else -100
        value[count:] = none if is_label else value[0]
    return batch


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])
@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("classes", {"loss", "accuracy", "f1"}),
        ("multilabel", {"loss", "accuracy", "f1"}),
        ("number", {"loss", "mse", "pearson"}),
        ("token-classes", {"loss", "accuracy", "f1"}),
        ("spans", {"loss", "exact_match", "f1"}),
        ("masked-lm", {"loss", "perplexity", "accuracy"}),
        ("llama", {"loss", "perplexity", "accuracy"}),
        ("bart", {"loss", "perplexity", "accuracy"}),
        ("images", {"loss", "accuracy", "f1"}),
    ],
)
def test_rows_that_fill_a_batch_up_change_nothing(
    name: str, metrics: set[str], graphs: bool
) -> None:
    data = batches(name, 3)
    ragged = [*data[:2], rows(data[2], 3)]
    padded = [*data[:2], filled(data[2], 3)]
    found = []
    for dataset in (ragged, padded):
        callbacks: list[Any] = [HPUGraphCallback()] if graphs else []
        trainer = training.trainer(callbacks=callbacks)
        module = make(name).eval()
        (result,) = trainer.test(module, loader(dataset), verbose=False)
        found.append(result)
    assert set(found[0]) == {f"test/{metric}" for metric in metrics}
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_against_torchmetrics_over_the_whole_data_set() -> None:
    data = batches("classes", 3)
    data[2] = rows(data[2], 1)
    module = make("classes").eval()
    stock = stock_of(module).eval()
    with torch.no_grad():
        logits = torch.cat([stock(**batch).logits for batch in data])
    labels = torch.cat([batch["labels"] for batch in data])
    (found,) = training.trainer().validate(module, loader(data), verbose=False)
    accuracy = tm.classification.MulticlassAccuracy(3, average="micro")(logits, labels)
    f1 = tm.classification.MulticlassF1Score(3, average="macro")(logits, labels)
    assert found["val/loss"] == pytest.approx(functional.cross_entropy(logits, labels).item())
    assert found["val/accuracy"] == pytest.approx(accuracy.item())
    assert found["val/f1"] == pytest.approx(f1.item())


def test_loss_of_tokens_is_their_mean_and_not_that_of_batches() -> None:
    data = batches("token-classes", 2)
    data[1] = rows(data[1], 1)
    module = make("token-classes").eval()
    stock = stock_of(module).eval()
    with torch.no_grad():
        logits = torch.cat([stock(**batch).logits.flatten(0, 1) for batch in data])
    labels = torch.cat([batch["labels"].flatten() for batch in data])
    (found,) = training.trainer().validate(module, loader(data), verbose=False)
    assert found["val/loss"] == pytest.approx(functional.cross_entropy(logits, labels).item())


def test_each_dataloader_has_metrics_of_its_own() -> None:
    one, other = batches("classes", 1), batches("classes", 2, seed=3)
    alone = [
        training.trainer().test(make("classes").eval(), loader(data), verbose=False)[0]
        for data in (one, other)
    ]
    trainer = training.trainer()
    trainer.test(make("classes").eval(), [loader(one), loader(other)], verbose=False)
    together = {name: float(value) for name, value in trainer.callback_metrics.items()}
    expected = alone[0] | {f"{name}/dataloader_1": value for name, value in alone[1].items()}
    assert together == pytest.approx(expected)


def test_training_logs_its_loss_by_step_and_by_epoch() -> None:
    module = make("classes")
    logged: list[dict[str, float]] = []

    class Logger(L.pytorch.loggers.logger.DummyLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            logged.append(metrics)

    trainer = training.trainer(max_epochs=1, logger=Logger(), log_every_n_steps=1)
    # A number that is there first is not the number of rows.
    first, *rest = ({"index": torch.tensor(7), **batch} for batch in batches("classes", 3))
    trainer.fit(module, loader([rows(first, 2), *rest]))
    steps = [entry["train/loss_step"] for entry in logged if "train/loss_step" in entry]
    (epoch,) = [entry["train/loss_epoch"] for entry in logged if "train/loss_epoch" in entry]
    assert len(steps) == 3
    assert epoch == pytest.approx((2 * steps[0] + 4 * steps[1] + 4 * steps[2]) / 10)


def test_validation_may_be_a_models_best() -> None:
    """A metric can be monitored by its name."""
    stop = L.pytorch.callbacks.EarlyStopping("val/loss", patience=0, min_delta=100.0)
    trainer = training.trainer(callbacks=[stop], max_epochs=5)
    data = batches("classes", 2)
    trainer.fit(make("classes"), loader(data), loader(data))
    assert trainer.current_epoch == 2


@pytest.mark.parametrize("name", ["classes", "gpt2", "t5"])
def test_buckets_are_captured_ahead(name: str) -> None:
    """The graphs of ``warmup="buckets"`` are those that the steps need."""
    lengths = [3, 8, 5, 8, 4, 2, 7, 8]
    data = [
        {key: [5 + i % 3] * n for key in ("input_ids", "labels")} for i, n in enumerate(lengths)
    ]
    if name == "classes":
        data = [{**row, "labels": i % 3} for i, row in enumerate(data)]
    loader = DataLoader(
        data,  # type: ignore[arg-type]
        batch_sampler=BucketBatchSampler(lengths, [5, 8], 2),
        collate_fn=BucketCollator([5, 8], pad_token_id=0),
    )
    graphs = HPUGraphCallback(warmup="buckets")
    module = make(name).eval()
    (found,) = training.trainer(callbacks=[graphs]).validate(module, loader, verbose=False)
    assert (graphs.stats.captures, graphs.stats.replays) == (2, 4)
    (expected,) = training.trainer().validate(module, loader, verbose=False)
    assert found == pytest.approx(expected, rel=1e-5)
