"""`HPUProfiler`: traces that name what the device is made to do, equal to the emulator's record."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerAction
from traces import Range, ranges_in
from training import IGNORED_WARNINGS, Classifier, features, mlp, trainer

from lightning_gaudi import HPUGraphCallback, HPUProfiler, emulator
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import ranges

pytestmark = IGNORED_WARNINGS

STEP = {
    "fit": "[LightningModule]Classifier.optimizer_step",
    "validate": "[Strategy]GaudiStrategy.validation_step",
    "test": "[Strategy]GaudiStrategy.test_step",
    "predict": "[Strategy]GaudiStrategy.predict_step",
}
ALL: dict[str, Any] = {"wait": 0, "warmup": 0, "active": None}


@pytest.fixture(autouse=True)
def _no_profiler_is_left() -> Any:
    yield
    assert not torch.autograd._profiler_enabled()
    assert not ranges.is_on
    assert emulator.events.span is None


def run(
    stage: str, profiler: HPUProfiler, module: Classifier | None = None, **settings: Any
) -> Any:
    """Run a stage of six steps under a profiler."""
    module = module or Classifier(mlp())
    settings = {"max_epochs": 1, "limit_val_batches": 0 if stage == "fit" else None} | settings
    if stage == "fit":
        return trainer(profiler=profiler, **settings).fit(module, features())
    options = {} if stage == "predict" else {"verbose": False}
    return getattr(trainer(profiler=profiler, **settings), stage)(module, features(), **options)


def counted(found: list[Range]) -> Counter[str]:
    return Counter(each.name for each in found)


@pytest.mark.parametrize("stage", STEP)
def test_a_whole_run_against_the_record(stage: str, tmp_path: Path) -> None:
    profiler = HPUProfiler(tmp_path, **ALL)
    callbacks = [HPUGraphCallback(stages=("fit", "validate", "test", "predict"))]
    with emulator.record() as events:
        run(stage, profiler, callbacks=callbacks)
    kinds = Counter(event.kind for event in events)
    assert profiler.traces == [tmp_path / f"{stage}-hpu.1.pt.trace.json"]
    found = ranges_in(profiler.traces[0])
    count = counted(found)
    assert count[STEP[stage]] == 6
    assert kinds["replay"] >= 4
    assert kinds["mark_step"] >= 6
    assert (count["mark_step"], count["capture"], count["replay"]) == (
        kinds["mark_step"],
        kinds["capture_end"],
        kinds["replay"],
    )
    steps = [each for each in found if each.name == STEP[stage]]
    for replay in (each for each in found if each.name == "replay"):
        assert sum(step.holds(replay) for step in steps) == 1
    # Fetching ends before anything else begins.
    fetches = [each for each in found if each.name.endswith("_next")]
    hooks = [each for each in found if each.name.startswith("[Strategy]")]
    assert len(fetches) >= 6
    assert not any(fetch.holds(hook) for fetch in fetches for hook in hooks)
    # A flush is inside what caused it: a mark step, a capture, a replay, or an op.
    flushes = [each for each in found if each.name == "flush"]
    causes = Counter(event.cause for event in events if event.kind == "flush")
    assert len(causes) > 1
    marks = [each for each in found if each.name == "mark_step"]
    assert sum(any(mark.holds(flush) for mark in marks) for flush in flushes) == causes["mark_step"]
    # Lightning reads what was logged after the strategy's last hook, which ends the profile.
    last = max(i for i, event in enumerate(events) if event.kind == "mark_step")
    late = [e for e in events[last:] if e.kind == "flush" and e.cause != "mark_step"]
    assert len(flushes) == kinds["flush"] - len(late)


def test_lightning_s_own_actions_are_ranges(tmp_path: Path) -> None:
    profiler = HPUProfiler(tmp_path, **ALL)
    run("fit", profiler)
    count = counted(ranges_in(profiler.traces[0]))
    assert count["[Strategy]GaudiStrategy.backward"] == 6
    assert count["[Strategy]GaudiStrategy.training_step"] == 6
    assert count["[_TrainingEpochLoop].train_dataloader_next"] == 6
    assert count["Optimizer.step#AdamW.step"] == 6
    assert count["run_training_batch"] == 6
    assert count["run_training_epoch"] == 0


def test_the_schedule_counts_steps(tmp_path: Path) -> None:
    profiler = HPUProfiler(tmp_path, "mine", wait=1, warmup=1, active=1, repeat=0)
    run("fit", profiler)
    assert [path.name for path in profiler.traces] == [
        "fit-mine.1.pt.trace.json",
        "fit-mine.2.pt.trace.json",
    ]
    # What comes after the last step, here the mark at the stage's end, belongs to it.
    for path, number, num_marks in zip(profiler.traces, (2, 5), (2, 3), strict=True):
        count = counted(ranges_in(path))
        assert count["run_training_batch"] == count["[Strategy]GaudiStrategy.backward"] == 1
        assert count["mark_step"] == num_marks
        assert count[f"ProfilerStep#{number}"] == 1
    text = (tmp_path / "fit-mine.txt").read_text()
    row = next(line.split() for line in text.splitlines() if line.startswith("mark_step"))
    assert row[1] == "5"  # of both windows
    assert float(row[2]) == pytest.approx(5 * float(row[3]) / 1000, abs=1e-3)


def test_validation_in_a_fit_lies_between_its_steps(tmp_path: Path) -> None:
    profiler = HPUProfiler(tmp_path, wait=2, warmup=0, active=2)
    module = Classifier(mlp())
    trainer(
        profiler=profiler,
        max_epochs=1,
        val_check_interval=3,
        limit_val_batches=2,
        num_sanity_val_steps=2,
    ).fit(module, features(), features())
    count = counted(ranges_in(profiler.traces[0]))
    assert count["[Strategy]GaudiStrategy.training_step"] == 2
    assert count["[Strategy]GaudiStrategy.validation_step"] == 2


def test_several_stages_and_trainers_keep_every_trace(tmp_path: Path) -> None:
    profiler = HPUProfiler(tmp_path, wait=1, warmup=0, active=2)
    module = Classifier(mlp())
    once = trainer(profiler=profiler, max_epochs=1)
    once.fit(module, features(), features())
    once.predict(module, features())
    trainer(profiler=profiler).predict(module, features())
    names = ["fit-hpu.1", "predict-hpu.1", "predict-hpu.2"]
    assert profiler.traces == [tmp_path / f"{name}.pt.trace.json" for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"{name}.pt.trace.json" for name in names] + ["fit-hpu.txt", "predict-hpu.txt"]
    )
    for path in profiler.traces[1:]:
        assert counted(ranges_in(path))[STEP["predict"]] == 2


class Failing(Classifier):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 3:
            raise ValueError("mine")
        return super().predict_step(batch, batch_idx)


@pytest.mark.parametrize("callbacks", [[], [HPUGraphCallback()]], ids=["bare", "graphs"])
def test_a_run_that_fails_writes_what_was_seen(callbacks: list[Any], tmp_path: Path) -> None:
    profiler = HPUProfiler(tmp_path, **ALL)
    with pytest.raises(ValueError, match="mine"):
        run("predict", profiler, Failing(mlp()), callbacks=callbacks)
    assert counted(ranges_in(profiler.traces[0]))[STEP["predict"]] == 4
    assert "mark_step" in (tmp_path / "predict-hpu.txt").read_text()
    run("predict", profiler)
    assert len(profiler.traces) == 2


def test_a_run_that_fails_on_the_cpu_is_told_by_a_callback_s_hook(tmp_path: Path) -> None:
    profiler = HPUProfiler(tmp_path, **ALL)
    with pytest.raises(ValueError, match="mine"):
        trainer("cpu", profiler=profiler, callbacks=[HPUGraphCallback(stages="fit")]).predict(
            Failing(mlp()), features()
        )
    count = counted(ranges_in(profiler.traces[0]))
    assert count["[Strategy]SingleDeviceStrategy.predict_step"] == 4


def test_a_run_whose_end_nobody_told_is_ended_by_the_next(tmp_path: Path) -> None:
    profiler = HPUProfiler(tmp_path, **ALL)
    profiler.setup("predict")
    with profiler.profile("mine"):
        torch.ones(1)
    profiler.setup("test")
    profiler.teardown("test")
    assert [path.name.partition("-")[0] for path in profiler.traces] == ["predict", "test"]
    assert counted(ranges_in(profiler.traces[0]))["mine"] == 1


def test_the_logger_s_folder_is_the_default(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    profiler = HPUProfiler(wait=1, warmup=0, active=1)
    logger = CSVLogger(tmp_path, name="a", version="b")
    run("predict", profiler, logger=logger)
    run("predict", profiler, default_root_dir=tmp_path / "c")
    assert profiler.traces == [
        tmp_path / "a" / "b" / "predict-hpu.1.pt.trace.json",
        tmp_path / "c" / "predict-hpu.1.pt.trace.json",
    ]


def test_options_reach_the_trace(tmp_path: Path) -> None:
    profiler = HPUProfiler(
        tmp_path,
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=1, repeat=1),
        record_shapes=True,
        profile_memory=True,
        with_stack=True,
        with_flops=True,
        row_limit=3,
        sort_by="count",
    )
    run("predict", profiler)
    trace = json.loads(profiler.traces[0].read_text())
    assert (trace["profile_memory"], trace["with_stack"], trace["record_shapes"]) == (1, 1, 1)
    linear = [e for e in trace["traceEvents"] if e.get("name") == "aten::addmm"]
    assert [4, 4] in linear[0]["args"]["Input Dims"]
    ops = (tmp_path / "predict-hpu.txt").read_text().partition("\nOps\n")[2]
    assert "CPU Mem" in ops


def test_too_short_a_run_says_so(tmp_path: Path) -> None:
    profiler = HPUProfiler(tmp_path, wait=9)
    with pytest.warns(UserWarning, match=r"recorded nothing: the predict run had \d steps"):
        run("predict", profiler)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    profiler = HPUProfiler(tmp_path / "file", **ALL)
    with (
        pytest.warns(UserWarning, match=r"HPUProfiler could not write .*predict-hpu.txt: "),
        pytest.warns(UserWarning, match=r"HPUProfiler could not write .*trace.json: "),
    ):
        found = run("predict", profiler)
    assert len(found) == 6
    assert profiler.traces == []


def test_another_profiler_is_in_the_way(tmp_path: Path) -> None:
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
        pytest.raises(ConfigurationError, match="another profiler records in this process"),
    ):
        run("predict", HPUProfiler(tmp_path))


def test_results_are_the_same(tmp_path: Path) -> None:
    module = Classifier(mlp())
    expected = trainer().predict(module, features())
    found = run("predict", HPUProfiler(tmp_path, **ALL), module, callbacks=[HPUGraphCallback()])
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wait": -1}, "wait must be a whole number of 0 or more, but it is -1"),
        ({"warmup": 1.5}, "warmup must be a whole number of 0 or more, but it is 1.5"),
        ({"active": 0}, "active must be a whole number of 1 or more, or None for all steps"),
        ({"repeat": True}, "repeat must be a whole number of 0 or more, but it is True"),
        ({"skip_first": None}, "skip_first must be a whole number of 0 or more, but it is None"),
        ({"schedule": 3}, "schedule must be a function of the step .* but it is 3"),
        ({"schedule": lambda step: step}, "but it gives 0 for step 0"),
        ({"sort_by": "hpu_time"}, "sort_by must be one of 'cpu_time', .* but it is 'hpu_time'"),
        ({"dirpath": "s3://a/b"}, "dirpath must be a folder of this machine"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        HPUProfiler(**options)


def test_the_default_schedule() -> None:
    none, warm = ProfilerAction.NONE, ProfilerAction.WARMUP
    record, last = ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE
    schedule = HPUProfiler(skip_first=1)._schedule
    assert list(map(schedule, range(8))) == [none, none, warm, record, record, last, none, none]
    whole = HPUProfiler(wait=1, warmup=0, active=None)._schedule
    assert list(map(whole, range(4))) == [none, record, record, record]
