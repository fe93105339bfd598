"""Training under Lightning against a plain loop, with and without graphs; what a step costs."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
import training
import transformers as tf
from modules.tasks_cases import CASES, batches, make, stock_of
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_gaudi import HPUGraphCallback, emulator
from lightning_gaudi.modules import TransformersModule

pytestmark = [
    *training.IGNORED_WARNINGS,
    pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`.*"),
]
STEPS = 6
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class Losses(L.Callback):
    """Keeps the loss of every training step, and the metrics of every validation."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.validated: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
        self.losses.append(outputs["loss"].item())

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        metrics = trainer.callback_metrics
        self.validated.append({k: float(v) for k, v in metrics.items() if k.startswith("val/")})


def loader(data: list[dict[str, Tensor]]) -> DataLoader[Any]:
    return DataLoader(data, batch_size=None)


def fit(
    module: TransformersModule, data: list[dict[str, Tensor]], *callbacks: Any, **settings: Any
):
    """Fit, and give what was kept."""
    kept = Losses()
    val = settings.pop("val", None)
    trainer = training.trainer(callbacks=[kept, *callbacks], **{"max_epochs": 1, **settings})
    trainer.fit(module, loader(data), val)
    return kept, trainer


def plain_loop(
    model: tf.PreTrainedModel, data: list[dict[str, Tensor]], schedule: str, warmup: int
) -> list[float]:
    """As the documentation of Transformers has it."""
    decayed = tf.trainer_pt_utils.get_parameter_names(
        model, [torch.nn.LayerNorm], ["bias", "layernorm", "rmsnorm", r"(?:^|\.)ln_", "norm"]
    )
    groups = [
        {"params": [p for n, p in model.named_parameters() if n in decayed], "weight_decay": 0.1},
        {"params": [p for n, p in model.named_parameters() if n not in decayed]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0)
    scheduler = tf.get_scheduler(schedule, optimizer, warmup, len(data))
    losses = []
    for batch in data:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", CASES)
def test_curve_against_a_plain_loop(name: str) -> None:
    settings = {"learning_rate": 1e-3, "weight_decay": 0.1, "warmup_steps": 2}
    module = make(name, optimizer="adamw", **settings)
    data = batches(name, STEPS)
    expected = plain_loop(stock_of(module), data, "linear", 2)
    kept, _ = fit(module, data, gradient_clip_val=1.0)
    assert len(set(expected)) == STEPS
    torch.testing.assert_close(torch.tensor(kept.losses), torch.tensor(expected), **CLOSE)


@pytest.mark.parametrize("optimizer", ["adamw", "fused-adamw"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_curve_by_schedule_and_optimizer(schedule: str, optimizer: str) -> None:
    settings = {"learning_rate": 1e-3, "weight_decay": 0.1, "warmup_steps": 0.3}
    module = make("classes", optimizer=optimizer, schedule=schedule, **settings)
    data = batches("classes", STEPS)
    theirs = "constant_with_warmup" if schedule == "constant" else schedule
    expected = plain_loop(stock_of(module), data, theirs, 2)  # 0.3 of 6, rounded up
    kept, trainer = fit(module, data, gradient_clip_val=1.0)
    assert type(trainer.optimizers[0]).__name__ == {"adamw": "AdamW"}.get(optimizer, "FusedAdamW")
    torch.testing.assert_close(torch.tensor(kept.losses), torch.tensor(expected), **CLOSE)


def test_automatically_the_optimizer_of_the_device() -> None:
    _, trainer = fit(make("classes"), batches("classes"))
    assert type(trainer.optimizers[0]).__name__ == "FusedAdamW"
    trainer = training.trainer("cpu", max_epochs=1)
    trainer.fit(make("classes"), loader(batches("classes")))
    assert type(trainer.optimizers[0]) is torch.optim.AdamW


@pytest.mark.parametrize("name", ["classes", "spans", "gpt2", "bart"])
def test_graphs_change_nothing(name: str) -> None:
    """Validation after every epoch, replayed; then training too."""
    data, val = batches(name, 4), batches(name, 3, seed=1)
    results, graphs = [], []
    for stages in ((), ("validate",), ("fit", "validate")):
        callbacks = [HPUGraphCallback(stages=stages)] if stages else []
        graphs.extend(callbacks)
        module = make(name, learning_rate=1e-3, warmup_steps=2)
        kept, _ = fit(module, data, *callbacks, val=loader(val), max_epochs=3)
        results.append((kept.losses, kept.validated))
    assert len(results[0][0]) == 12
    assert len(results[0][1]) == 3
    assert results[0][1][0] != results[0][1][2]
    assert results[1] == results[0]
    assert results[2] == results[0]
    assert (graphs[0].stats.captures, graphs[0].stats.replays) == (1, 8)
    assert graphs[1].stats.eager_calls == 1  # the step whose gradients were noted
    assert graphs[1].stats.replays > 15


@pytest.mark.parametrize("optimizer", ["adamw", "fused-adamw"])
@pytest.mark.parametrize("name", ["classes", "llama"])
def test_steps_after_the_third_compile_nothing_and_read_nothing(name: str, optimizer: str) -> None:
    """Under a schedule, whose learning rate is another number in every step."""

    class Marks(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            starts.append(len(events))

        def on_train_batch_end(self, *rest: Any) -> None:
            ends.append(len(events))

    starts: list[int] = []
    ends: list[int] = []
    module = make(name, optimizer=optimizer, learning_rate=1e-3, warmup_steps=4)
    data = batches(name, 8)
    trainer = training.trainer(callbacks=[Marks()], max_epochs=1)
    with emulator.record() as events:
        trainer.fit(module, loader(data))
    late = events[starts[3] : ends[-1]]
    assert [e.detail for e in late if e.kind == "compile"] == []
    assert [e.line for e in events[starts[0] : ends[-1]] if e.kind == "host_read"] == []


@pytest.mark.parametrize("name", ["classes", "multilabel", "numbers", "spans", "llama", "bart"])
def test_evaluation_reads_the_host_at_its_end_only(name: str) -> None:
    class Marks(L.Callback):
        def on_validation_batch_start(self, *rest: Any) -> None:
            places.append(len(events))

        def on_validation_batch_end(self, *rest: Any) -> None:
            places.append(len(events))

    places: list[int] = []
    trainer = training.trainer(callbacks=[Marks()])
    with emulator.record() as events:
        trainer.validate(make(name), loader(batches(name, 5)), verbose=False)
    steps = events[places[0] : places[-1]]
    assert [e.line for e in steps if e.kind in ("host_read", "d2h")] == []
    late = events[places[6] : places[-1]]
    assert [e.detail for e in late if e.kind == "compile"] == []


def test_accumulated_batches() -> None:
    data = batches("classes", 4)
    settings = {"optimizer": "adamw", "learning_rate": 1e-3, "schedule": "constant"}
    module = make("classes", **settings)
    stock = stock_of(module)
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [
                    p for n, p in stock.named_parameters() if "bias" not in n and "Norm" not in n
                ]
            },
            {
                "params": [p for n, p in stock.named_parameters() if "bias" in n or "Norm" in n],
                "weight_decay": 0.0,
            },
        ],
        lr=1e-3,
        weight_decay=0.01,
    )
    expected = []
    for index, batch in enumerate(data):
        loss = stock(**batch).loss / 2
        loss.backward()
        expected.append(loss.item())
        if index % 2:
            optimizer.step()
            optimizer.zero_grad()
    kept, _ = fit(module, data, accumulate_grad_batches=2)
    torch.testing.assert_close(torch.tensor(kept.losses), torch.tensor(expected), **CLOSE)


def test_gradient_checkpointing_leaves_evaluation_its_graphs() -> None:
    graphs = HPUGraphCallback()
    module = make("classes", gradient_checkpointing=True)
    data = batches("classes", 3)
    fit(module, data, graphs, val=loader(data))
    assert (graphs.stats.captures, graphs.stats.replays) == (1, 2)


def test_an_adapter_added_later_is_trained_and_saved(tmp_path) -> None:
    """Anything that adds modules inside the model: only they are trained here."""

    class Adapter(torch.nn.Module):
        def __init__(self, inner: torch.nn.Linear) -> None:
            super().__init__()
            self.inner = inner
            self.down = torch.nn.Linear(inner.in_features, 2, bias=False)
            self.up = torch.nn.Linear(2, inner.out_features, bias=False)
            torch.nn.init.zeros_(self.up.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + self.up(self.down(x))

    module = make("classes", learning_rate=1e-2, schedule="constant")
    module.model.requires_grad_(False)
    module.model.classifier = Adapter(module.model.classifier)
    before = {name: p.clone() for name, p in module.named_parameters()}
    kept, _ = fit(module, batches("classes", 2) * 2)
    assert kept.losses[2] < kept.losses[0]
    changed = {n for n, p in module.named_parameters() if not torch.equal(p.cpu(), before[n])}
    assert changed == {"model.classifier.down.weight", "model.classifier.up.weight"}
