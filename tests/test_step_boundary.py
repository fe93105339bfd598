"""Where the lazy graph breaks, as the emulated HPU records it: the order, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import RunPython
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from training import IGNORED_WARNINGS, features, mlp, trainer

from lightning_gaudi import GaudiStrategy, emulator
from lightning_gaudi.emulator import Event, accounting
from lightning_gaudi.step_boundary import StepBoundary

pytestmark = [
    *IGNORED_WARNINGS,
    pytest.mark.filterwarnings("ignore:You called `self.log.*no logger configured"),
]

MARK = "mark_step"


class Witness(L.LightningModule):
    """Writes what Lightning calls into the record of events, between the device's own events.

    Args:
        events: The record.
        is_manual: Whether to use manual optimization, with two optimizers.
        is_logging: Whether to log, on steps and epochs, with a progress bar.
    """

    def __init__(
        self, events: list[Any], *, is_manual: bool = False, is_logging: bool = False
    ) -> None:
        super().__init__()
        self.first, self.second = mlp(), mlp()
        self.events = events
        self.ends: list[int] = []  # how many events there were when a training batch ended
        self.automatic_optimization = not is_manual
        self.is_logging = is_logging
        self.make_optimizer: Any = lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        self.events.append(f"train {batch_idx}")
        loss = self.first(batch[0]).square().mean() + self.second(batch[0]).square().mean()
        if self.is_logging:
            self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True)
            self.log("double", 2 * loss.detach(), on_epoch=True, reduce_fx="max")
        if self.automatic_optimization:
            return loss
        for optimizer, network in zip(self.optimizers(), (self.first, self.second), strict=True):
            loss = network(batch[0]).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return None

    def evaluate(self, stage: str, batch: list[Tensor], batch_idx: int) -> None:
        self.events.append(f"{stage} {batch_idx}")
        loss = self.first(batch[0]).square().mean()
        if self.is_logging:
            self.log(f"{stage}_loss", loss, prog_bar=True)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.evaluate("validate", batch, batch_idx)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.evaluate("test", batch, batch_idx)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.events.append(f"predict {batch_idx}")
        return self.first(batch[0])

    def on_before_backward(self, loss: Tensor) -> None:
        self.events.append("backward")

    def on_after_backward(self) -> None:
        self.events.append("backward done")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.events.append("optimizer")

    def on_validation_epoch_end(self) -> None:
        self.events.append("validation ends")

    def on_train_batch_end(self, *args: Any) -> None:
        self.ends.append(len(self.events))

    def on_train_epoch_end(self) -> None:
        self.events.append("epoch ends")

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            return self.make_optimizer(self.parameters())
        return [self.make_optimizer(net.parameters()) for net in (self.first, self.second)]


def order(events: list[Any]) -> list[str]:
    """The module's own entries and the marks."""
    return [
        event.kind if isinstance(event, Event) else event
        for event in events
        if not isinstance(event, Event) or event.kind == MARK
    ]


def record(stage: str, *, is_manual: bool = False, rows: int = 8, **settings: Any) -> list[str]:
    """Run a stage over ``rows`` / 4 batches; the order of what happened."""
    settings = {"max_epochs": 1, "limit_val_batches": 0} | settings
    with emulator.record() as events:
        module = Witness(events, is_manual=is_manual)
        data = features(rows=rows)
        loop = trainer(**settings)
        if stage == "fit":
            loop.fit(module, data, data)
        else:
            getattr(loop, stage)(module, data)
    return order(events)


def test_fit() -> None:
    assert record("fit") == [
        MARK,  # what ran before the first step
        "train 0",
        "backward",
        "backward done",
        MARK,
        "optimizer",
        MARK,
        "train 1",
        "backward",
        "backward done",
        MARK,
        "optimizer",
        MARK,
        "epoch ends",
        MARK,  # the stage's end
    ]


def test_fit_of_two_epochs_breaks_before_each() -> None:
    step = ["backward", "backward done", MARK, "optimizer", MARK]
    assert record("fit", rows=4, max_epochs=2) == [
        MARK,
        "train 0",
        *step,
        "epoch ends",
        MARK,
        "train 0",
        *step,
        "epoch ends",
        MARK,
    ]


def test_gradient_accumulation_breaks_after_every_micro_batch() -> None:
    assert record("fit", rows=16, accumulate_grad_batches=3) == [
        MARK,
        "train 0",
        "backward",
        "backward done",
        MARK,
        "train 1",
        "backward",
        "backward done",
        MARK,
        "train 2",
        "backward",
        "backward done",
        MARK,
        "optimizer",
        MARK,
        "train 3",  # what is left over at the epoch's end steps too
        "backward",
        "backward done",
        MARK,
        "optimizer",
        MARK,
        "epoch ends",
        MARK,
    ]


def test_manual_optimization_breaks_for_each_optimizer() -> None:
    for_one = ["backward", "backward done", MARK, "optimizer", MARK]
    assert record("fit", is_manual=True) == [
        MARK,
        "train 0",
        *for_one,
        *for_one,
        "train 1",
        *for_one,
        *for_one,
        "epoch ends",
        MARK,
    ]


def test_validation_inside_fit() -> None:
    step = ["backward", "backward done", MARK, "optimizer", MARK]
    found = record("fit", rows=8, limit_val_batches=2, val_check_interval=1, max_epochs=1)
    validation = [
        MARK,  # what ran before the stage
        "validate 0",
        MARK,
        "validate 1",
        MARK,
        "validation ends",
        MARK,  # the stage's end
    ]
    assert found == [
        MARK,
        "train 0",
        *step,
        *validation,
        MARK,  # what ran between validation and step
        "train 1",
        *step,
        *validation,
        "epoch ends",
        MARK,
    ]


def test_sanity_check() -> None:
    found = record("fit", rows=4, num_sanity_val_steps=1, limit_val_batches=1)
    validation = [MARK, "validate 0", MARK, "validation ends", MARK]
    step = ["backward", "backward done", MARK, "optimizer", MARK]
    assert found == [*validation, MARK, "train 0", *step, *validation, "epoch ends", MARK]


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluation(stage: str) -> None:
    found = record(stage, limit_val_batches=2)
    ends = ["validation ends"] if stage == "validate" else []
    assert found == [MARK, f"{stage} 0", MARK, f"{stage} 1", MARK, *ends, MARK]


def test_nothing_is_pending_after_a_stage_end() -> None:
    """Only resets of Lightning's logged values follow the last mark."""
    for stage in ("validate", "test", "predict"):
        with emulator.record() as events:
            module = Witness(events)
            getattr(trainer(), stage)(module, features())
        kinds = [event.kind for event in events if isinstance(event, Event)]
        last = len(kinds) - 1 - kinds[::-1].index(MARK)
        assert set(kinds[last + 1 :]) <= {"d2h"}, stage


def test_no_break_between_backward_and_optimizer_on_request() -> None:
    strategy = GaudiStrategy(mark_step_after_backward=False)
    assert record("fit", strategy=strategy) == [
        MARK,
        "train 0",
        "backward",
        "backward done",
        "optimizer",
        MARK,
        "train 1",
        "backward",
        "backward done",
        "optimizer",
        MARK,
        "epoch ends",
        MARK,
    ]


def test_lbfgs_breaks_after_each_of_its_backwards() -> None:
    with emulator.record() as events:
        module = Witness(events)
        module.make_optimizer = lambda weights: torch.optim.LBFGS(weights, max_iter=2)
        trainer(max_steps=1).fit(module, features())
    one = ["train 0", "backward", "backward done", MARK, "optimizer"]
    assert order(events) == [MARK, *one, *one, MARK, "epoch ends", MARK]


@pytest.mark.parametrize("mode", ["eager", "compile"])
def test_other_modes_never_mark(mode: Any) -> None:
    boundary = StepBoundary(mode)
    with emulator.record() as events:
        boundary.at_stage_start()
        boundary.before_training_step(0)
        boundary.after_backward()
        boundary.after_optimizer_step()
        boundary.after_evaluation_step()
        boundary.at_stage_end()
    assert events == []


@pytest.mark.slow
def test_no_marks_in_eager_mode(run_python: RunPython) -> None:
    tests = Path(__file__).parent
    run_python(
        f"""
        import sys
        sys.path.insert(0, {str(tests)!r})
        import torch
        from lightning_gaudi import GaudiStrategy, emulator
        from training import Classifier, features, mlp, trainer

        losses = {{}}
        for accelerator in ("hpu", "cpu"):
            settings = {{"strategy": GaudiStrategy("eager")}} if accelerator == "hpu" else {{}}
            with emulator.record() as events:
                torch.manual_seed(0)
                module = Classifier(mlp())
                loop = trainer(accelerator, **settings)
                loop.fit(module, features(), features())
                loop.test(module, features())
                loop.predict(module, features())
            losses[accelerator] = module.losses
            kinds = {{event.kind for event in events}}
            assert "mark_step" not in kinds and "flush" not in kinds, kinds
            assert ("compile" in kinds) == (accelerator == "hpu"), kinds
        torch.testing.assert_close(losses["hpu"], losses["cpu"], rtol=1e-5, atol=1e-5)
        """,
        PT_HPU_LAZY_MODE=None,
    )


# --- nothing is compiled after the third step ---------------------------------------------------


@pytest.fixture
def _empty_recipe_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes that other tests have compiled count as new here."""
    monkeypatch.setattr(accounting, "cache", accounting.RecipeCache())


def compilations(events: list[Any]) -> list[Event]:
    return [event for event in events if isinstance(event, Event) and event.kind == "compile"]


OPTIMIZERS = {
    "SGD": lambda weights: torch.optim.SGD(weights, 0.1),
    "momentum": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9),
    "Adam": lambda weights: torch.optim.Adam(weights, 0.01),
    "AdamW": lambda weights: torch.optim.AdamW(weights, 0.01),
}


def fit_fully_equipped(folder: Path, optimizer: Any, **settings: Any) -> Witness:
    """Fit 10 batches with progress bar, summary, logger, checkpoints and logging on."""
    settings = {
        "max_epochs": 1,
        "logger": CSVLogger(folder, version=0),
        "log_every_n_steps": 1,
        "enable_progress_bar": True,
        "enable_model_summary": True,
        "enable_checkpointing": True,
        "callbacks": [ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1)],
    } | settings
    with emulator.record() as events:
        module = Witness(events, is_logging=True)
        module.make_optimizer = optimizer
        trainer(**settings).fit(module, features(rows=40), features(rows=8))
    return module


@pytest.mark.usefixtures("_empty_recipe_cache")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_after_the_third_compile_nothing(name: str, tmp_path: Path) -> None:
    module = fit_fully_equipped(tmp_path, OPTIMIZERS[name], limit_val_batches=0)
    assert len(module.ends) == 10
    assert compilations(module.events[: module.ends[2]]) != []
    later = module.events[module.ends[2] : module.ends[9]]
    assert compilations(later) == []
    # The device is read for what is shown and logged, and that is on.
    assert any(event.kind == "host_read" for event in later if isinstance(event, Event))


@pytest.mark.usefixtures("_empty_recipe_cache")
def test_later_epochs_compile_nothing_inside_a_step(tmp_path: Path) -> None:
    module = fit_fully_equipped(tmp_path, OPTIMIZERS["AdamW"], max_epochs=4, num_sanity_val_steps=2)
    events, ends = module.events, module.ends
    inside = is_inside_a_step(events)
    late = compilations(events[ends[2] :])
    assert [event for event in late if inside[id(event)]] == []
    # Between steps, epoch ends reduce and reset what was logged: small graphs, compiled once each.
    assert late
    # (A number written on the device is an op there, and ends no graph as a copy would.)
    assert all(int(event.detail.split()[0]) <= 15 for event in late), late
    assert compilations(events[ends[20] : ends[39]]) == []


def is_inside_a_step(events: list[Any]) -> dict[int, bool]:
    """By identity of event: whether it lies between a step's begin and the mark that ends it."""
    marks_left = 0
    found = {}
    for event in events:
        if isinstance(event, str):
            if event.startswith("train "):
                marks_left = 2
            elif event.startswith("validate "):
                marks_left = 1
            continue
        if event.kind == MARK:
            marks_left -= 1
        # What a step's last mark flushes and compiles comes right after the mark.
        found[id(event)] = marks_left > 0 or (marks_left == 0 and event.cause == MARK)
    return found


@pytest.mark.usefixtures("_empty_recipe_cache")
def test_a_learning_rate_that_changes_every_step_compiles_nothing_with_adamw(
    tmp_path: Path,
) -> None:
    def configure(weights: Any) -> Any:
        optimizer = torch.optim.AdamW(weights, 0.01)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    module = fit_fully_equipped(tmp_path, configure, limit_val_batches=0)
    assert compilations(module.events[module.ends[2] : module.ends[9]]) == []


def test_without_logging_the_host_reads_nothing() -> None:
    with emulator.record() as events:
        trainer().fit(Witness(events), features())
    steps = events[events.index("train 0") : events.index("epoch ends")]
    reads = [event for event in steps if isinstance(event, Event) and event.kind == "host_read"]
    assert reads == []
