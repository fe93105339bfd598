"""`HPUThroughputMonitor`: rates against a clock of the test's own, memory against the device's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import DeviceStatsMonitor
from lightning.pytorch.loggers import CSVLogger, Logger
from training import IGNORED_WARNINGS, Classifier, features, mlp, trainer

from lightning_gaudi import HPUGraphCallback, HPUThroughputMonitor, emulator
from lightning_gaudi.callbacks import throughput
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import device

pytestmark = IGNORED_WARNINGS


class Clock:
    """Goes on only where told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "_clock", clock)
    return clock


class Timed(Classifier):
    """Steps take as long as told: a fit's half a second, with 100 s for each of the first two."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(mlp())
        self.clock = clock
        self.num_steps: Counter[str] = Counter()

    def take(self, stage: str, seconds: float) -> None:
        self.num_steps[stage] += 1
        self.clock.now += 100 if self.num_steps[stage] <= 2 else seconds

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.take("fit", 0.5)
        return super().loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.take("validate", 0.25)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.take("test", 2.0)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self.take("predict", 4.0)
        return super().predict_step(batch, batch_idx)


class Memo(Logger):
    """Remembers what was logged."""

    name = version = "memo"

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        found = {
            name.removeprefix("throughput/"): value
            for name, value in metrics.items()
            if name.startswith("throughput/") and name.endswith("_second")
        }
        if found:
            self.logged.append((step, found))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def rates(stage: str, batches: float) -> dict[str, float]:
    """The rates of batches of four rows."""
    return {
        f"{stage}/batches_per_second": pytest.approx(batches),
        f"{stage}/samples_per_second": pytest.approx(4 * batches),
    }


def test_a_fit_with_validation(clock: Clock) -> None:
    monitor, memo = HPUThroughputMonitor(window_size=2, warmup_steps=2), Memo()
    trainer(
        callbacks=[monitor],
        logger=memo,
        max_epochs=1,
        val_check_interval=3,
        num_sanity_val_steps=2,
    ).fit(Timed(clock), features(), features(rows=12))
    # Six steps, two of them warm-up. Validation takes 200 s, none of which is the fit's. The sanity
    # check is no validation, but its steps are those that Timed makes slow.
    assert memo.logged == [
        (3, rates("validate", 4.0)),
        (4, rates("fit", 2.0)),
        (6, rates("fit", 2.0)),
        (6, rates("validate", 4.0)),
    ]
    assert monitor.figures["fit"]["samples_per_second"] == pytest.approx(8.0)
    assert monitor.figures["validate"]["batches_per_second"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("stage", "seconds"), [("validate", 0.25), ("test", 2.0), ("predict", 4.0)]
)
def test_other_stages(stage: str, seconds: float, clock: Clock) -> None:
    monitor, memo = HPUThroughputMonitor(window_size=3, warmup_steps=2), Memo()
    run = trainer(callbacks=[monitor], logger=memo)
    options = {} if stage == "predict" else {"verbose": False}
    module = Timed(clock)
    getattr(run, stage)(module, features(), **options)
    assert memo.logged == [(5, rates(stage, 1 / seconds)), (6, rates(stage, 1 / seconds))]
    # Warm-up is left out of every run anew.
    module.num_steps.clear()
    getattr(run, stage)(module, features(), **options)
    assert monitor.figures[stage]["batches_per_second"] == pytest.approx(1 / seconds)


def test_what_a_batch_counts(clock: Clock) -> None:
    monitor = HPUThroughputMonitor(
        batch_size_fn=lambda batch: 3, length_fn=lambda batch: batch[0].numel(), warmup_steps=2
    )
    trainer(callbacks=[monitor]).predict(Timed(clock), features())
    figures = monitor.figures["predict"]
    assert figures["samples_per_second"] == pytest.approx(3 / 4)
    assert figures["tokens_per_second"] == pytest.approx(4 * 4 / 4)


def test_a_run_of_warmup_alone_has_no_rates(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = HPUThroughputMonitor(warmup_steps=6)
    trainer(callbacks=[monitor]).predict(Timed(clock), features())
    assert not any(name.endswith("_second") for name in monitor.figures["predict"])
    assert "predict" in capsys.readouterr().out


def test_memory_by_stage(clock: Clock) -> None:
    class Greedy(Timed):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            torch.zeros(2**20, device="hpu")  # 4 MiB, gone at once
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            torch.zeros(2**18, device="hpu")
            super().validation_step(batch, batch_idx)

    monitor = HPUThroughputMonitor(window_size=2)
    before = device.memory_stats()["InUse"]
    trainer(callbacks=[monitor], max_epochs=1, val_check_interval=3).fit(
        Greedy(clock), features(), features()
    )
    fit, validate = monitor.figures["fit"], monitor.figures["validate"]
    floor = before / 2**30
    assert floor + 4 / 1024 < fit["memory_peak_gib"] < floor + 4.5 / 1024
    assert floor + 1 / 1024 < validate["memory_peak_gib"] < floor + 1.5 / 1024
    assert fit["memory_in_use_gib"] < floor + 0.5 / 1024
    limit = device.memory_stats()["Limit"] / 2**30
    assert fit["memory_peak_share"] == pytest.approx(fit["memory_peak_gib"] / limit)


@pytest.mark.parametrize("stage", ["fit", "predict"])
@pytest.mark.parametrize("synchronize", [False, True])
def test_it_adds_no_host_read_and_no_compilation(
    stage: str, synchronize: bool, tmp_path: Path
) -> None:
    def counted(callbacks: list[Any]) -> Counter[str]:
        run = trainer(
            callbacks=callbacks,
            max_epochs=2,
            logger=CSVLogger(tmp_path),
            log_every_n_steps=2,
            val_check_interval=3,
        )
        module = Classifier(mlp())
        with emulator.record(empty_cache=True) as events:
            if stage == "fit":
                run.fit(module, features(), features())
            else:
                run.predict(module, features())
        return Counter(event.kind for event in events if event.kind != "flush")

    monitor = HPUThroughputMonitor(window_size=2, warmup_steps=1, synchronize=synchronize)
    assert counted([monitor]) == counted([])
    assert monitor.figures[stage]["samples_per_second"] > 0


def test_it_waits_for_the_device_once_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(device, "synchronize", lambda: waits.append(1))
    for synchronize, expected in ((False, 0), (True, 4)):  # warm-up, two windows, the end
        waits.clear()
        monitor = HPUThroughputMonitor(window_size=2, warmup_steps=1, synchronize=synchronize)
        trainer(callbacks=[monitor]).predict(Classifier(mlp()), features())
        assert len(waits) == expected


def test_the_table(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = HPUThroughputMonitor(warmup_steps=2)
    trainer(callbacks=[monitor], max_epochs=1).fit(Timed(clock), features(), features())
    out = capsys.readouterr().out
    assert "Throughput" in out
    rows = {line.split()[1]: line.split() for line in out.splitlines() if line.startswith("│")}
    assert rows["fit"][3] == "6"
    assert rows["fit"][5] == "500.00"
    assert rows["validate"][5:10:2] == ["250.00", "4.00", "16.0"]
    assert "tokens/s" not in out

    quiet = HPUThroughputMonitor(print_table=False)
    trainer(callbacks=[quiet]).predict(Timed(clock), features())
    assert "Throughput" not in capsys.readouterr().out


def test_a_run_that_fails_is_told_too(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(Timed):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 4:
                raise ValueError("mine")
            return super().predict_step(batch, batch_idx)

    monitor = HPUThroughputMonitor(warmup_steps=2)
    with pytest.raises(ValueError, match="mine"):
        trainer(callbacks=[monitor]).predict(Failing(clock), features())
    assert monitor.figures["predict"]["batches_per_second"] == pytest.approx(1 / 4)
    assert capsys.readouterr().out.count("Throughput") == 1


def test_beside_other_callbacks(tmp_path: Path) -> None:
    callbacks = [DeviceStatsMonitor(), HPUThroughputMonitor(warmup_steps=1), HPUGraphCallback()]
    module = Classifier(mlp())
    logger = CSVLogger(tmp_path, name="", version="")
    run = trainer(callbacks=callbacks, logger=logger, log_every_n_steps=2, max_epochs=1)
    run.fit(module, features(), features())
    expected = trainer().predict(module, features())
    for ours, theirs in zip(run.predict(module, features()), expected, strict=True):
        assert torch.equal(ours, theirs)
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    for name in ("fit/samples_per_second", "validate/memory_peak_gib"):
        assert f"throughput/{name}" in header


def test_on_the_cpu_it_tells_no_memory(clock: Clock) -> None:
    monitor = HPUThroughputMonitor(warmup_steps=2)
    trainer("cpu", callbacks=[monitor]).predict(Timed(clock), features())
    assert monitor.figures == {
        "predict": {
            "batches_per_second": pytest.approx(0.25),
            "samples_per_second": pytest.approx(1.0),
        }
    }


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda batch: batch[0].sum(), "returned HPUTensor. A tensor would be a host read"),
        (lambda batch: 1.5, "returned float"),
    ],
    ids=["tensor", "float"],
)
def test_counts_are_whole_numbers_of_the_host(function: Any, message: str) -> None:
    monitor = HPUThroughputMonitor(length_fn=function)
    with pytest.raises(TypeError, match=f"length_fn must return a whole number.*{message}"):
        trainer(callbacks=[monitor]).predict(Classifier(mlp()), features())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size_fn": 3}, "batch_size_fn must be a function of a batch, but it is 3"),
        ({"length_fn": "x"}, "length_fn must be a function of a batch, but it is 'x'"),
        ({"window_size": -1}, "window_size must be a whole number of 0 or more"),
        ({"warmup_steps": True}, "warmup_steps must be a whole number of 0 or more"),
        ({"synchronize": 1}, "synchronize must be True or False, but it is 1"),
        ({"print_table": None}, "print_table must be True or False"),
    ],
    ids=["batch_size_fn", "length_fn", "window_size", "warmup_steps", "synchronize", "print_table"],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        HPUThroughputMonitor(**options)
