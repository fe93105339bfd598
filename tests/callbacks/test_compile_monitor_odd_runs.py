"""`CompileMonitor` where code has no file, two watch at once, or stdout is gone."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from callbacks import runs
from rich.console import Console
from torch.utils.data import DataLoader

from lightning_gaudi import CompileMonitor, GaudiStrategy, HPUGraphCallback
from lightning_gaudi.emulator import accounting, events
from lightning_gaudi.errors import BudgetExceededError, ConfigurationError
from lightning_gaudi.runtime import loading

SOURCE = """
import lightning as L
import torch

class Net(L.LightningModule):
    def __init__(self, *sins):
        super().__init__()
        self.sins = sins
        self.out = torch.nn.Linear(3, 2)
        self.activate = lambda x, slope: (
            torch.nn.functional.leaky_relu(x, slope)  # constant
        )

    def training_step(self, batch, batch_idx):
        def inner():
            def deeper(x):
                if "read" in self.sins:
                    self.seen = [
                        value.item()  # read
                        for value in (x.sum(),)
                    ]
                return x.pow(2).mean()

            hidden = self.out(batch)  # shape
            changes = "constant" in self.sins and batch_idx > 4
            return deeper(self.activate(hidden, batch_idx / 9 if changes else 0.5))

        if "fallback" in self.sins:
            torch.linalg.eigvalsh(torch.eye(2, device=self.device))  # fallback
        return inner()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
"""
FAULTS = {
    "read": ("host_read", ".item()", 5),
    "shape": ("compilation", "addmm", 3),
    "constant": ("compilation", "leaky_relu", 3),
    "fallback": ("cpu_fallback", "_linalg_eigh", 5),
}


@pytest.fixture(autouse=True)
def _no_record_is_left_open(monkeypatch):
    monkeypatch.setattr(accounting, "cache", accounting.RecipeCache())
    methods = dict(vars(torch.Tensor))
    yield
    assert events._records == []
    assert type(accounting.pending.ops) is list
    assert dict(vars(torch.Tensor)) == methods


@pytest.mark.parametrize("filename", ["<ipython-input-3-0123456789ab>", "<string>"])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_in_nested_functions_without_a_file(fault, filename):
    names = {"__name__": "__main__"}
    exec(compile(SOURCE, filename, "exec"), names)
    lengths = [2 + (max(0, step - 4) if fault == "shape" else 0) for step in range(8)]
    batches = DataLoader([torch.ones(length, 3) for length in lengths], batch_size=None)
    watched = CompileMonitor(report=False)
    runs.trainer(watched, max_epochs=1).fit(names["Net"](fault), batches)
    (number,) = [
        number for number, line in enumerate(SOURCE.splitlines(), 1) if line.endswith(f"# {fault}")
    ]
    kind, cause, times = FAULTS[fault]
    found = {
        (finding["kind"], finding["place"], finding["cause"], finding["after_warmup"])
        for finding in watched.facts["findings"]
        if finding["after_warmup"] and not finding["is_library"]
    }
    assert (kind, f"{filename}:{number}", cause, times) in found
    assert {kind for kind, *_ in found} == {kind}


class ReadsLast(L.Callback):
    """Reads after the monitor has seen the last step's end."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 5:
            outputs["loss"].item()

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 5:
            outputs.sum().item()


@pytest.mark.parametrize("name", ["fit", "predict"])
def test_a_budget_exceeded_after_the_last_step_raises(name):
    watched = CompileMonitor(report=False, max_host_reads=0, on_exceed="raise")
    trainer = runs.trainer(watched, ReadsLast(), max_epochs=1)
    with pytest.raises(BudgetExceededError, match=rf"1 host read .* in step 6 of {name}"):
        getattr(trainer, name)(runs.make(), runs.data())


def test_two_at_once_see_the_same():
    first, second = CompileMonitor(report=False), CompileMonitor(report=False, warmup_steps=0)
    runs.trainer(first, second, max_epochs=1).fit(runs.make(), runs.data(), runs.data())
    assert first.facts["total"]["compilations"] > 0
    for stage, facts in first.facts["stages"].items():
        assert second.facts["stages"][stage]["counts"] == facts["counts"]


def test_two_at_once_on_a_card_leave_no_mode_behind(monkeypatch):
    """Callbacks begin and end in the same order; the fixture sees what they left on tensors."""
    strategy = GaudiStrategy()
    monkeypatch.setattr(loading, "is_emulated", lambda: False)
    monkeypatch.setattr("lightning_gaudi.accelerator.HPUAccelerator.is_available", lambda: True)
    monkeypatch.setattr("lightning_gaudi.runtime.device.count", lambda: 1)
    both = [CompileMonitor(report=False, host_reads=True) for _ in range(2)]
    trainer = runs.trainer(*both, ReadsLast(), max_epochs=1, strategy=strategy)
    trainer.fit(runs.make(), runs.data())
    first, second = [watched.facts["total"] for watched in both]
    assert first["host_reads"] > 0
    assert first == second


def test_with_graphs_of_training_steps_captures_and_lines_are_told():
    watched = CompileMonitor(report=False)
    graphs = HPUGraphCallback(stages=("fit", "validate"))
    trainer = runs.trainer(watched, graphs, max_epochs=3)
    trainer.fit(runs.make(runs.WithForward), runs.data(20), runs.data(20))
    stages = watched.facts["stages"]
    assert stages["fit"]["counts"]["captures"] == 2  # forward and backward
    assert stages["fit"]["counts"]["replays"] >= 2 * (5 * 3 - 2)
    assert stages["validate"]["counts"]["replays"] == 5 * 3
    assert watched.facts["after_warmup"]["captures"] == 0
    own = [f for f in watched.facts["findings"] if f["kind"] == "compilation"]
    assert any(f["source"] == "return self(x)" for f in own)
    assert all(f["line"] != "<unknown>" for f in own)


def test_a_path_is_no_markup(tmp_path, capsys):
    watched = CompileMonitor(dirpath=tmp_path / "run[red]" / ":smile:")
    runs.trainer(watched).predict(runs.make(), runs.data(4))
    assert (
        str(tmp_path / "run[red]" / ":smile:" / "compile_monitor.html") in capsys.readouterr().out
    )


def test_a_folder_elsewhere_is_not_made_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = runs.trainer(CompileMonitor(), default_root_dir="memory://bucket/run")
    with pytest.warns(UserWarning, match="'memory://bucket/run' is elsewhere, so its report goes"):
        trainer.predict(runs.make(), runs.data(4))
    assert {path.suffix for path in tmp_path.iterdir()} == {".html", ".png", ".json"}
    with pytest.raises(ConfigurationError, match="dirpath must be a folder of this machine"):
        CompileMonitor(dirpath="s3://bucket/run")


def test_a_closed_pipe_does_not_hide_the_result(monkeypatch):
    def fails(console, *args, **kwargs):
        raise BrokenPipeError("Broken pipe")

    watched = CompileMonitor(report=False)
    trainer = runs.trainer(watched)
    monkeypatch.setattr(Console, "print", fails)
    with pytest.warns(UserWarning, match="could not print what it found: Broken pipe"):
        (predicted,) = trainer.predict(runs.make(), runs.data(4))
    assert predicted.shape == (4, 3)
