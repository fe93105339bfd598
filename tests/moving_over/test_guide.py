"""The guide's scripts run, before and after; its tables name what there is."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
import yaml
from conftest import RunPython
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import StrategyRegistry
from moving_over.rows import GUIDE, evaluated, quiet_trainer, rows_under
from snippets import ROOT, Row, snippets
from training import IGNORED_WARNINGS, Classifier, features, mlp

import lightning_gaudi
from lightning_gaudi import GaudiStrategy, HPUAccelerator, HPUGraphCallback, emulator
from lightning_gaudi.errors import ConfigurationError
from lightning_gaudi.runtime import device
from lightning_gaudi.runtime.step import mark_step

pytestmark = IGNORED_WARNINGS
NAMES = rows_under("The classes have their old names")
CUDA = rows_under("## From CUDA")


@pytest.mark.slow
def test_the_scripts_of_the_guide(run_python: RunPython, tmp_path: Any) -> None:
    habana, cuda = snippets(GUIDE, "py")
    (tmp_path / "old.py").write_text(habana)
    (command,) = snippets(GUIDE, "sh")
    command = command.replace("script.py", str(tmp_path / "old.py"))
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert "lightning_habana" not in (tmp_path / "old.py").read_text()
    for there, here in (
        ("torch.cuda", "torch.hpu"),
        ('"gpu"', '"hpu"'),
        ("16-mixed", "32-true"),
        ("logger=False", "logger=False, callbacks=[naive]"),
    ):
        assert cuda.count(there) == 1
        cuda = cuda.replace(there, here)
    (tmp_path / "naive.py").write_text(cuda)

    first, second = snippets(GUIDE)
    checks_of_first = """
        import runpy

        assert (graphs.stats.captures, graphs.stats.padded_calls) == (1, 1)
        old = runpy.run_path("old.py")
        assert len(predictions) == 22
        torch.testing.assert_close(predictions, old["predictions"], rtol=1e-5, atol=1e-5)
    """
    checks_of_second = """
        expected = run("cpu")
        assert expected.std() > 0.1
        torch.testing.assert_close(predictions, expected, rtol=1e-5, atol=1e-5)
        assert (graphs.stats.captures, graphs.stats.padded_calls) == (1, 1)

        # What the changes are good for: the naive script on the HPU.
        naive = CompileMonitor()
        runpy.run_path("naive.py", {"naive": naive})
        now, before = (m.facts["stages"]["fit"]["after_warmup"] for m in (monitor, naive))
        assert now["host_reads"] == 0 < 9 <= before["host_reads"]
        assert now["compilations"] <= 1, now  # of a checkpoint
        assert before["compilations"] >= 3, before
        print("done")
    """
    parts = (first, textwrap.dedent(checks_of_first), second, textwrap.dedent(checks_of_second))
    assert run_python("\n".join(parts)).stdout.endswith("done\n")


def test_links_exist() -> None:
    text = (ROOT / GUIDE).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / "docs" / target).exists(), target
    headings = {
        "#" + heading.lower().replace(" ", "-")
        for heading in re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    }
    assert headings == set(re.findall(r"\]\((#[^)]*)\)", text))


# --- lightning-habana ---------------------------------------------------------------------------


def test_the_table_of_names() -> None:
    named: set[str] = set()
    for row in NAMES:
        there, here = row.code(0), row.code(1)
        classes = [name for name in there if not name.startswith('"')]
        named |= set(classes)
        for name in classes:
            found = getattr(lightning_gaudi, name)
            if here:
                assert issubclass(found, getattr(lightning_gaudi, here[0]))
            else:
                with pytest.raises(ConfigurationError, match="has no equal here"):
                    found()
        registered = [name.strip('"') for name in there if name.startswith('"')]
        for name in registered:
            assert StrategyRegistry[name]["strategy"] is getattr(lightning_gaudi, classes[0])
        for name in here[1:]:
            assert name.strip('"') in StrategyRegistry
    kept = {"HPUAccelerator", "HPUCheckpointIO", "HPUProfiler"}
    assert named == kept | (
        lightning_gaudi.moving_over.NAMES.keys() - {"HPUDeepSpeedPrecisionPlugin"}
    )


def test_the_arguments_of_the_profiler() -> None:
    (row,) = [row for row in NAMES if "HPUProfiler" in row.code(0)]
    by_shapes, record_shapes, by_key, sort_by, *left_out = row.code(2)
    taken = inspect.signature(lightning_gaudi.HPUProfiler).parameters
    assert {record_shapes, sort_by} <= taken.keys()
    assert not {by_shapes, by_key, *left_out} & taken.keys()


class Module(Classifier):
    """For LightningCLI."""

    def __init__(self) -> None:
        super().__init__(mlp())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between LightningCLI and jsonargparse
def test_the_yaml(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setattr(sys, "argv", ["script.py"])

    (text,) = snippets(GUIDE, "yaml")
    settings = yaml.safe_load(text)
    settings["trainer"] |= {"logger": False, "enable_progress_bar": False}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    cli = LightningCLI(
        Module,
        run=False,
        args=["--config", str(tmp_path / "config.yaml")],
        save_config_callback=None,
        seed_everything_default=False,
    )
    assert type(cli.trainer.strategy) is GaudiStrategy
    assert cli.trainer.precision_plugin.precision == "bf16-mixed"
    assert any(isinstance(callback, HPUGraphCallback) for callback in cli.trainer.callbacks)


def test_fabric() -> None:
    import lightning_gaudi.fabric

    text = (ROOT / GUIDE).read_text("utf-8")
    for name in ("GaudiFabricStrategy", "HPUFabricPrecision"):
        assert f"`{name}`" in text
        assert name in lightning_gaudi.fabric.__all__
    (code,) = re.findall(r"`(Fabric\(.*?\))`", text)
    strategy = evaluated(code, Fabric=Fabric).strategy
    assert type(strategy) is lightning_gaudi.fabric.GaudiFabricStrategy


def test_marks_of_ones_own_compile_nothing() -> None:
    class Marks(Callback):
        """Marks where the strategy has marked already."""

        def on_after_backward(self, *args: Any) -> None:
            mark_step()

        def on_train_batch_end(self, *args: Any) -> None:
            mark_step()

    def counts(*callbacks: Callback) -> dict[str, int]:
        torch.manual_seed(0)
        module = Classifier(torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.Linear(7, 3)))
        with emulator.record() as events:
            quiet_trainer(callbacks=list(callbacks)).fit(module, features())
        kinds = [event.kind for event in events]
        return {kind: kinds.count(kind) for kind in ("mark_step", "flush", "compile")}

    counts()  # so that both runs find the same recipes
    without, with_marks = counts(), counts(Marks())
    assert with_marks["mark_step"] == without["mark_step"] + 2 * 6
    assert with_marks["flush"] == without["flush"]
    assert with_marks["compile"] == without["compile"]


# --- CUDA ---------------------------------------------------------------------------------------


def cuda_row(name: str) -> Row:
    (row,) = [row for row in CUDA if name in row.code(0)]
    return row


def here(name: str, **names: Any) -> Any:
    """What the code for a name of CUDA gives."""
    return evaluated(cuda_row(name).code(1)[0], **names)


def test_trainers_for_cuda() -> None:
    assert type(here('Trainer(accelerator="gpu")').accelerator) is HPUAccelerator
    assert type(here('strategy="ddp"').strategy) is GaudiStrategy
    run = here("GradScaler()")
    assert run.precision_plugin.precision == "bf16-mixed"
    assert run.precision_plugin.scaler is None
    with torch.no_grad(), here('torch.autocast("cuda")'):
        layer = torch.nn.Linear(2, 2).to("hpu")
        assert layer(torch.ones(1, 2).to("hpu")).dtype is torch.bfloat16
    assert isinstance(here("torch.compile(model)"), HPUGraphCallback)
    assert here("torch.cuda.CUDAGraph()").stages == ("fit", "predict")


def test_devices_and_memory_for_cuda() -> None:
    moved = here("model.cuda()", x=torch.ones(1000))
    assert str(moved.device) == "hpu:0"
    here("torch.cuda.synchronize()")
    assert here("torch.cuda.max_memory_allocated()") >= moved.nbytes
    for name in cuda_row("torch.cuda.max_memory_allocated()").code(2):
        assert callable(getattr(torch.hpu, name))
    assert isinstance(here("torch.cuda.Stream()"), torch.hpu.Stream)
    here("torch.cuda.manual_seed_all(1)")
    drawn = torch.randn(3, device="hpu").cpu()
    torch.hpu.manual_seed_all(1)
    torch.testing.assert_close(drawn, torch.randn(3, device="hpu").cpu(), rtol=0, atol=0)
    loader = here("pin_memory=True", data=torch.ones(4, 2))
    assert next(iter(loader)).is_pinned()


def test_shapes_that_depend_on_values_for_cuda() -> None:
    row = cuda_row("x[x > 0].sum()")
    x = torch.tensor([1.0, -2.0, 3.0])
    there, fixed = row.code(0)[0], row.code(1)[0]
    assert evaluated(there, x=x) == evaluated(fixed, x=x) == 4

    def num_compilations(code: str) -> int:
        with emulator.record(empty_cache=True) as events:
            for number in range(1, 9):
                values = torch.cat([torch.ones(number), -torch.ones(9 - number)]).to("hpu")
                mark_step()
                evaluated(code, x=values)
                mark_step()
        return sum(event.kind == "compile" for event in events)

    assert num_compilations(fixed) <= 3  # the mask and the sum
    assert num_compilations(there) >= 8


def test_the_rest_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        here("ReduceOp.AVG", ReduceOp=torch.distributed.ReduceOp) == torch.distributed.ReduceOp.SUM
    )
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_DEVICES", "4")
    name, value = cuda_row("CUDA_VISIBLE_DEVICES=0,1").code(1)[0].split("=")
    monkeypatch.setenv(name, value)
    assert device.count() == 2
    assert cuda_row('attn_implementation="flash_attention_2"').code(1) == [
        'attn_implementation="sdpa"'
    ]


class Logged(Classifier):
    """Logs its loss by the code of the guide, and reads it in no other way."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        here("loss.item()", self=self, loss=loss)
        return loss


def test_logging_for_cuda() -> None:
    module = Logged(mlp())
    run = quiet_trainer()
    with emulator.record() as events:
        run.fit(module, features())
    assert run.callback_metrics["loss"] > 0
    assert sum(event.kind == "host_read" for event in events) < 6  # fewer than steps


def test_device_stats_for_cuda(tmp_path: Any) -> None:
    from lightning.pytorch.loggers import CSVLogger

    row = cuda_row("DeviceStatsMonitor()")
    logger = CSVLogger(tmp_path)
    run = quiet_trainer(callbacks=[evaluated(row.code(1)[0])], logger=logger, log_every_n_steps=1)
    run.fit(Classifier(mlp()), features())
    (table,) = tmp_path.rglob("metrics.csv")
    header = table.read_text().splitlines()[0]
    for name in [row.code(1)[1], *row.code(2)]:
        assert f"/{name}," in header + ",", name
