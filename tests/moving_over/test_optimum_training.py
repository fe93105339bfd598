"""The guide's rows for ``GaudiTrainingArguments``: the code of each runs and does what it says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import RunPython
from lightning.pytorch.callbacks import Callback
from moving_over.rows import code_of, evaluated, quiet_trainer, rows_under
from torch.utils.data import DataLoader
from training import IGNORED_WARNINGS, Classifier, features, mlp

from lightning_gaudi import GaudiStrategy, HPUAccelerator, HPUGraphCallback, emulator
from lightning_gaudi.emulator import events as emulator_events
from lightning_gaudi.runtime.optimizers import is_fused_adamw

pytestmark = IGNORED_WARNINGS
TABLE = "`GaudiTrainingArguments`"


def row(argument: str, **names: Any) -> Any:
    """What the code of an argument's row gives."""
    return evaluated(code_of(TABLE, argument), **names)


def seeded() -> Classifier:
    torch.manual_seed(0)
    return Classifier(mlp())


def fit(run: L.Trainer, **settings: Any) -> tuple[Classifier, list[Any]]:
    """A fitted module, and the events of its run."""
    module = seeded()
    with emulator.record() as events:
        run.fit(module, settings.get("data", features()))
    return module, events


def on_the_cpu() -> Classifier:
    module = seeded()
    quiet_trainer(accelerator="cpu").fit(module, features())
    return module


def counted(events: list[Any], kind: str) -> int:
    return sum(event.kind == kind for event in events)


def predictions(run: L.Trainer, rows: int = 22) -> torch.Tensor:
    return torch.cat(run.predict(seeded(), features(rows=rows)))  # type: ignore[arg-type]


def test_each_argument_of_the_table_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    arguments = {argument for row in rows_under(TABLE) for argument in row.code(0)}
    assert arguments <= tested, arguments - tested


def test_use_habana() -> None:
    run = row("use_habana")
    assert type(run.accelerator) is HPUAccelerator
    assert fit(run)[0].losses == pytest.approx(on_the_cpu().losses, abs=1e-5)


def test_use_lazy_mode() -> None:
    strategy = row("use_lazy_mode")
    assert strategy.mode == GaudiStrategy().mode == "lazy"
    _, events = fit(quiet_trainer(strategy=strategy))
    # A mark after each of the 6 backwards and optimizer steps.
    assert counted(events, "mark_step") >= 2 * 6


@pytest.mark.slow
def test_use_lazy_mode_false(run_python: RunPython) -> None:
    (row,) = [row for row in rows_under(TABLE) if "use_lazy_mode" in row.code(0)]
    run_python(
        f"""
        from lightning_gaudi import GaudiStrategy, emulator
        from training import Classifier, features, mlp, trainer

        strategy = GaudiStrategy({row.code(2)[1]})
        assert strategy.mode == "eager"
        with emulator.record() as events:
            trainer(strategy=strategy).fit(Classifier(mlp()), features())
        assert not [event for event in events if event.kind == "mark_step"]
        """,
        PT_HPU_LAZY_MODE=None,
        PYTHONPATH=str(Path(__file__).parent.parent),
    )


def test_use_hpu_graphs_for_inference() -> None:
    graphs = row("use_hpu_graphs_for_inference")
    found = predictions(quiet_trainer(callbacks=[graphs]))
    torch.testing.assert_close(found, predictions(quiet_trainer(accelerator="cpu")))
    # 5 batches of 4 rows and one of 2, which is padded.
    assert (graphs.stats.captures, graphs.stats.replays) == (1, 6)


def test_use_hpu_graphs_for_training() -> None:
    graphs = row("use_hpu_graphs_for_training")
    module, events = fit(quiet_trainer(callbacks=[graphs]))
    assert module.losses == pytest.approx(on_the_cpu().losses, abs=1e-5)
    assert graphs.stats.captures > 0
    assert counted(events, "replay") >= 2 * 4  # forward and backward


def test_disable_tensor_cache_hpu_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    from habana_frameworks.torch.hpu import HPUGraph

    begin, asked = HPUGraph.capture_begin, []

    def capture_begin(self: Any, dry_run: bool = False) -> None:
        asked.append(dry_run)
        begin(self, dry_run)

    monkeypatch.setattr(HPUGraph, "capture_begin", capture_begin)
    in_use: list[int] = []

    class Memory(Callback):
        def on_predict_batch_end(self, *args: Any) -> None:
            in_use.append(torch.hpu.memory_allocated())

    graphs = row("disable_tensor_cache_hpu_graphs")
    found = predictions(quiet_trainer(callbacks=[graphs, Memory()]))
    expected = predictions(quiet_trainer(callbacks=[HPUGraphCallback(), Memory()]))
    torch.testing.assert_close(found, expected)
    # The Gaudi software keeps no results of a graph that is captured dry, here those of two layers
    # of 8 units. Its inputs are read where they are: 4 rows of 4 features need no second place.
    assert asked == [True, False]
    assert in_use[6] - in_use[0] == 4 * (2 * 8 + 4) * 4


def test_max_hpu_graphs() -> None:
    graphs = row("max_hpu_graphs")
    batches = [batch for width in (2, 3, 4) for batch in features((width, 4), rows=4)]
    run = quiet_trainer(callbacks=[graphs])
    with pytest.warns(UserWarning, match="more than max_graphs=2 kinds of arguments"):
        found = run.predict(seeded(), DataLoader(batches, batch_size=None))
    expected = quiet_trainer(accelerator="cpu").predict(
        seeded(), DataLoader(batches, batch_size=None)
    )
    torch.testing.assert_close(found, expected)
    assert (graphs.stats.captures, graphs.stats.evictions) == (3, 1)


class Compilations(Callback):
    """Notes how many graphs each training step compiles."""

    def __init__(self) -> None:
        self.by_step: list[int] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.before = emulator_events.counts["compile"]

    def on_train_batch_end(self, *args: Any) -> None:
        self.by_step.append(emulator_events.counts["compile"] - self.before)


def test_dataloader_drop_last() -> None:
    ragged = features(rows=22)
    loader = row("dataloader_drop_last", data=ragged.dataset)
    assert [len(batch[0]) for batch in loader] == [4] * 5
    kept, dropped = Compilations(), Compilations()
    fit(quiet_trainer(callbacks=[kept]), data=ragged)
    fit(quiet_trainer(callbacks=[dropped]), data=loader)
    assert kept.by_step[-1] > 0
    assert dropped.by_step[2:] == [0, 0, 0]


def test_throughput_warmup_steps() -> None:
    monitor = row("throughput_warmup_steps")
    fit(quiet_trainer(callbacks=[monitor], max_epochs=2))
    assert monitor.warmup_steps == 3
    assert monitor._books["fit"].total.batches == 2 * 6 - 3
    assert monitor.figures["fit"]["samples_per_second"] > 0


def test_adjust_throughput() -> None:
    class SlowValidation(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            time.sleep(0.4)

    monitor = row("adjust_throughput")
    data = features(rows=44)
    run = quiet_trainer(callbacks=[monitor], max_epochs=1, val_check_interval=4)
    run.fit(SlowValidation(mlp()), data, features(rows=4))
    # With the two validations, 8 steps after the third would have taken at least 0.8 seconds.
    assert monitor.figures["fit"]["batches_per_second"] > 10


def test_gaudi_config_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"use_fused_adam": True, "use_fused_clip_norm": True, "use_torch_autocast": True}
    Path("gaudi_config.json").write_text(json.dumps(settings))
    run = quiet_trainer(strategy=row("gaudi_config_name"), gradient_clip_val=0.5)
    module, _ = fit(run)
    assert run.precision_plugin.precision == "bf16-mixed"
    assert is_fused_adamw(run.optimizers[0])
    reference = seeded()
    plain = quiet_trainer(accelerator="hpu", precision="bf16-mixed", gradient_clip_val=0.5)
    plain.fit(reference, features())
    assert module.losses == pytest.approx(reference.losses, abs=1e-3)


class Dtypes(Classifier):
    """Notes the dtype of the logits of a training step, and of the weights."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen = (self.network(batch[0]).dtype, self.network[0].weight.dtype)
        return super().training_step(batch, batch_idx)


def test_bf16() -> None:
    module = Dtypes(mlp())
    row("bf16").fit(module, features())
    assert module.seen == (torch.bfloat16, torch.float32)


def test_pipelining_fwd_bwd() -> None:
    code = code_of(TABLE, "pipelining_fwd_bwd")

    class Pipelined(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            evaluated(code)
            return loss

    torch.manual_seed(0)
    module = Pipelined(mlp())
    with emulator.record() as events:
        quiet_trainer().fit(module, features())
    plain, events_without = fit(quiet_trainer())
    assert counted(events, "mark_step") == counted(events_without, "mark_step") + 6
    assert module.losses == plain.losses == pytest.approx(on_the_cpu().losses, abs=1e-5)


def test_non_blocking_data_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    run = row("non_blocking_data_copy")
    copies: list[bool] = []
    copy = torch.Tensor.to

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and str(args[0]) == "hpu:0" and not isinstance(self, torch.nn.Parameter):
            copies.append(kwargs.get("non_blocking", False))
        return copy(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    predictions(run)
    assert copies == [True] * 2 * 6  # inputs and labels of 6 batches


def test_distribution_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "2")
    strategy = row("distribution_strategy")
    assert strategy._ddp_kwargs == GaudiStrategy()._ddp_kwargs
    assert strategy._ddp_kwargs["bucket_cap_mb"] == 230
    run = quiet_trainer(strategy=strategy, devices=2)
    assert run.world_size == 2
    assert run._accelerator_connector.is_distributed


def test_ddp_find_unused_parameters() -> None:
    assert row("ddp_find_unused_parameters")._ddp_kwargs["find_unused_parameters"] is True
    assert GaudiStrategy()._ddp_kwargs["find_unused_parameters"] is False


def test_profiling_steps(tmp_path: Path) -> None:
    profiler = row("profiling_steps")
    run = quiet_trainer(profiler=profiler, default_root_dir=tmp_path)
    run.predict(seeded(), features())
    (trace,) = profiler.traces
    names = [event["name"] for event in json.loads(trace.read_text())["traceEvents"]]
    # Of 6 steps the first one waits, the second one warms up, and two are recorded.
    assert sum(name.endswith("GaudiStrategy.predict_step") for name in names) == 2


test_profiling_warmup_steps = test_profiling_steps
