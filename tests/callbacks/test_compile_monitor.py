"""`CompileMonitor`: every cause with its file and line, counts by stage and step, budgets."""

from __future__ import annotations

import inspect
import json
import math

import lightning as L
import pytest
import torch
from callbacks import runs
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_gaudi import CompileMonitor, GaudiStrategy, HPUGraphCallback
from lightning_gaudi.emulator import accounting, events
from lightning_gaudi.errors import BudgetExceededError, ConfigurationError
from lightning_gaudi.runtime import loading, metrics

STEPS = 10
pytestmark = pytest.mark.usefixtures("_empty_recipe_cache")


@pytest.fixture
def _empty_recipe_cache(monkeypatch):
    monkeypatch.setattr(accounting, "cache", accounting.RecipeCache())


@pytest.fixture(autouse=True)
def _no_record_is_left_open():
    yield
    assert events._records == []
    assert type(accounting.pending.ops) is list


class Guilty(L.LightningModule):
    """One of each: a host read, a growing shape, a changing constant, an op without a kernel."""

    def __init__(self, *sins):
        super().__init__()
        self.sins = sins
        self.embedding = nn.Embedding(11, 8)
        self.out = nn.Linear(8, 3)

    def training_step(self, batch, batch_idx):
        ids, labels = batch
        hidden = self.embedding(ids).mean(1)  # shape
        slope = 0.5 if batch_idx < 6 or "constant" not in self.sins else batch_idx / 100
        hidden = nn.functional.leaky_relu(hidden, slope)  # constant
        loss = nn.functional.cross_entropy(self.out(hidden), labels)
        if "read" in self.sins:
            self.seen = loss.item()  # read
        if "fallback" in self.sins:
            torch.linalg.eigvalsh(torch.eye(2, device=self.device))  # fallback
        if "error" in self.sins and batch_idx == 4:
            raise KeyError("mine")
        if "interrupt" in self.sins and batch_idx == 4:
            raise KeyboardInterrupt
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Frame(L.Callback):
    """Counts what happens between a monitor's setup and teardown, listed before it."""

    def __init__(self):
        self.counted = []

    def setup(self, trainer, pl_module, stage):
        self.before = metrics.counters()

    def teardown(self, trainer, pl_module, stage):
        self.counted.append(metrics.counters() - self.before)


def line_of(text, function=Guilty.training_step):
    lines, start = inspect.getsourcelines(function)
    (number,) = [i for i, line in enumerate(lines) if line.rstrip().endswith(f"# {text}")]
    return f"{__file__}:{start + number}"


def batches(grows=False):
    generator = torch.Generator().manual_seed(0)
    lengths = [5 + (max(0, i - 5) if grows else 0) for i in range(STEPS)]
    return DataLoader(
        [
            (
                torch.randint(11, (4, n), generator=generator),
                torch.randint(3, (4,), generator=generator),
            )
            for n in lengths
        ],
        batch_size=None,
    )


def fit(monitor, *sins, **settings):
    torch.manual_seed(1)
    module = Guilty(*sins)
    runs.trainer(monitor, max_epochs=1, **settings).fit(module, batches("shape" in sins))
    return module


def monitor(tmp_path, **settings):
    return CompileMonitor(dirpath=tmp_path, **settings)


def late(monitor, kind):
    """Line, cause and number of the findings after the warm-up, those of libraries left out."""
    return {
        (f["line"], f["cause"], f["after_warmup"])
        for f in monitor.facts["findings"]
        if f["kind"] == kind and f["after_warmup"] and not f["is_library"]
    }


def test_each_cause_is_named_with_file_and_line(tmp_path):
    watched = monitor(tmp_path)
    fit(watched, "shape", "constant", "read", "fallback")
    assert late(watched, "host_read") == {(line_of("read"), ".item()", 7)}
    assert late(watched, "cpu_fallback") == {(line_of("fallback"), "_linalg_eigh", 7)}
    assert late(watched, "compilation") == {(line_of("shape"), "embedding", 4)}
    (finding,) = [f for f in watched.facts["findings"] if f["line"] == line_of("shape")][:1]
    assert finding["steps"] == ["fit 7", "fit 8", "fit 9", "fit 10"]
    where = line_of("constant").rpartition("/")[2]
    assert finding["texts"][0] == (
        "[4, 6]:int64, before [4, 5]:int64; besides, leaky_relu: negative_slope is 0.06, before "
        f"0.5 ({where})"
    )
    assert finding["source"] == "hidden = self.embedding(ids).mean(1)  # shape"
    assert "BucketCollator" in finding["remedy"]


def test_a_constant_on_its_own(tmp_path):
    watched = monitor(tmp_path)
    fit(watched, "constant")
    assert late(watched, "compilation") == {(line_of("constant"), "leaky_relu", 4)}
    finding = watched.ledger.worst("compilation")[0]
    assert finding.texts[0] == (
        "leaky_relu: negative_slope is 0.06, before 0.5; "
        "leaky_relu_backward: negative_slope is 0.06, before 0.5"
    )
    assert "Pass it as a tensor" in finding.remedy


def test_a_clean_fit_has_nothing_after_the_warm_up(tmp_path):
    watched = monitor(tmp_path, max_compilations=0, max_host_reads=0, on_exceed="raise")
    fit(watched)
    late_counts = watched.facts["after_warmup"]
    assert (late_counts["compilations"], late_counts["host_reads"]) == (0, 0)
    assert late_counts["cache_hits"] >= STEPS - 3
    assert watched.ledger.worst("compilation", late=False)


def test_the_weights_are_those_of_a_fit_without_it(tmp_path):
    torch.manual_seed(1)
    plain = Guilty("shape", "read", "fallback")
    runs.trainer(max_epochs=1).fit(plain, batches(True))
    watched = fit(monitor(tmp_path, host_reads=True), "shape", "read", "fallback")
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name


def test_stages_steps_and_graphs_are_counted_apart(tmp_path):
    watched = monitor(tmp_path)
    frame = Frame()
    graphs = HPUGraphCallback()
    trainer = runs.trainer(frame, watched, graphs, max_epochs=2, num_sanity_val_steps=2)
    module = runs.make()
    trainer.fit(module, runs.data(), runs.data())
    trainer.validate(module, runs.data(), verbose=False)
    trainer.test(module, runs.data(), verbose=False)
    trainer.predict(module, runs.data())
    stages = watched.facts["stages"]
    assert {name: s["steps"] for name, s in stages.items() if s["steps"]} == {
        "fit": 12,
        "validate": 18,
        "test": 6,
        "predict": 6,
    }
    assert stages["sanity_check"]["counts"]["compilations"] > 0
    assert stages["predict"]["counts"]["captures"] > 0
    assert stages["predict"]["counts"]["replays"] > 0
    assert stages["fit"]["counts"]["replays"] == 0
    total = watched.facts["total"]
    for name in ("compilations", "cache_hits", "host_reads", "host_copies", "cpu_fallbacks"):
        assert total[name] == sum(getattr(counted, name) for counted in frame.counted), name
    timeline = watched.facts["timeline"]
    assert [row["step"] for row in timeline if row["stage"] == "fit"] == list(range(1, 13))
    assert [row["step"] for row in timeline if row["is_warmup"]] == [1, 2, 3] * 4
    assert timeline[6]["stage"] == "validate"


def test_what_lightning_reads_is_named_by_its_own_line(tmp_path):
    class Logs(Guilty):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss)
            return loss

    watched = monitor(tmp_path)
    trainer = runs.trainer(
        watched, max_epochs=1, log_every_n_steps=1, logger=CSVLogger(tmp_path, name="csv")
    )
    trainer.fit(Logs(), batches())
    reads = watched.ledger.worst("host_read")
    assert reads
    assert all(f.is_library and "/lightning/" in f.line for f in reads)
    assert all(f.place.endswith("(library)") for f in reads)
    assert sum(f.num_late for f in reads) >= STEPS - 3
    assert "log_every_n_steps" in reads[0].remedy


@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_counts_are_logged_without_reading_or_compiling(tmp_path, kind):
    logged = []
    make = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}[kind]
    logger = make(tmp_path / "logs")
    log_metrics = logger.log_metrics

    def log(metrics, step=None):
        logged.append((step, metrics))
        log_metrics(metrics, step)

    logger.log_metrics = log
    watched = CompileMonitor(log_every_n_steps=5)
    trainer = runs.trainer(watched, max_epochs=1, logger=logger, num_sanity_val_steps=0)
    trainer.fit(Guilty("read"), batches())
    ours = [(step, m) for step, m in logged if "compile_monitor/host_reads" in m]
    assert [(step, m["compile_monitor/host_reads"]) for step, m in ours] == [(5, 5), (10, 5)]
    total = watched.facts["stages"]["fit"]["counts"]
    for name, value in total.items():
        assert sum(m[f"compile_monitor/{name}"] for _, m in ours) <= value
    assert all(type(value) is int for _, m in ours for value in m.values())
    reads = [f for f in watched.ledger.worst("host_read", late=False) if not f.is_library]
    assert [f.count for f in reads] == [STEPS]
    assert (tmp_path / "logs").joinpath(logger.log_dir, "compile_monitor.html").exists()


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_other_stages_log_their_sums(tmp_path, stage):
    logger = CSVLogger(tmp_path)
    logged = []
    logger.log_metrics = lambda metrics, step=None: logged.append(metrics)
    watched = CompileMonitor()
    getattr(runs.trainer(watched, logger=logger), stage)(runs.make(), runs.data(), verbose=False)
    (ours,) = [m for m in logged if f"compile_monitor/{stage}/compilations" in m]
    counts = watched.facts["stages"][stage]["counts"]
    for name in ("compilations", "cache_hits"):
        assert 0 < ours[f"compile_monitor/{stage}/{name}"] <= counts[name]


def test_prediction_without_a_logger(tmp_path):
    watched = CompileMonitor()
    trainer = runs.trainer(watched, default_root_dir=tmp_path)
    trainer.predict(runs.make(), runs.data())
    assert watched.facts["stages"]["predict"]["steps"] == 6
    assert {path.name for path in tmp_path.iterdir()} == {
        "compile_monitor.html",
        "compile_monitor.json",
        "compile_monitor.png",
    }


# --- budgets --------------------------------------------------------------------------------------


def test_a_budget_raises_at_the_end_of_the_step_and_reports(tmp_path):
    watched = monitor(tmp_path, max_host_reads=2, on_exceed="raise")
    with pytest.raises(BudgetExceededError) as caught:
        fit(watched, "read")
    message = str(caught.value)
    where = line_of("read").rpartition(":")[2]
    assert message.startswith(
        "CompileMonitor: max_host_reads=2 is exceeded: 3 host reads after 3 warm-up steps, noticed "
        "in step 6 of fit.\n"
    )
    assert f"test_compile_monitor.py:{where} .item() 3 times" in message
    assert "What to change: Take it out of the step" in message
    written = json.loads((tmp_path / "compile_monitor.json").read_text())
    assert written["stages"]["fit"]["steps"] == 6
    assert written["stopped_by"] == "BudgetExceededError"


def test_a_budget_warns_once(tmp_path):
    watched = monitor(tmp_path, max_compilations=1)
    with pytest.warns(UserWarning, match=r"max_compilations=1 is exceeded: 2 comp") as caught:
        fit(watched, "shape")
    ours = [w for w in caught if "CompileMonitor" in str(w.message)]
    assert len(ours) == 1
    assert f"{line_of('shape').rpartition('/')[2]} embedding" in str(ours[0].message)
    assert watched.facts["stages"]["fit"]["steps"] == STEPS


def test_the_warm_up_is_not_counted(tmp_path):
    fit(monitor(tmp_path, max_host_reads=0, warmup_steps=STEPS, on_exceed="raise"), "read")
    with pytest.raises(BudgetExceededError, match="1 host read after 0 warm-up steps"):
        fit(monitor(tmp_path, max_host_reads=0, warmup_steps=0, on_exceed="raise"), "read")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_compilations": -1}, "max_compilations must be a whole number of 0 or more"),
        ({"max_host_reads": 1.5}, "max_host_reads must be a whole number .* it is 1.5"),
        ({"warmup_steps": True}, "warmup_steps must be a whole number .* it is True"),
        ({"on_exceed": "stop"}, "on_exceed must be 'warn' or 'raise', but it is 'stop'"),
        ({"log_every_n_steps": -5}, "log_every_n_steps must be a whole number"),
        ({"report": "yes"}, "report must be True or False, but it is 'yes'"),
        ({"host_reads": 1}, "host_reads must be True or False, but it is 1"),
    ],
)
def test_arguments_that_cannot_be(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        CompileMonitor(**settings)


# --- what goes wrong ------------------------------------------------------------------------------


def test_an_exception_reaches_the_user_and_the_report_is_written(tmp_path):
    with pytest.raises(KeyError, match="mine"):
        fit(monitor(tmp_path), "read", "error")
    written = json.loads((tmp_path / "compile_monitor.json").read_text())
    assert written["stopped_by"] == "KeyError"
    assert written["stages"]["fit"]["steps"] == 4
    assert written["stages"]["fit"]["counts"]["host_reads"] >= 5


def test_ctrl_c(tmp_path):
    with pytest.raises(SystemExit):
        fit(monitor(tmp_path), "interrupt")
    written = json.loads((tmp_path / "compile_monitor.json").read_text())
    assert written["stopped_by"] == "KeyboardInterrupt"


def test_another_callback_that_fails_in_setup(tmp_path):
    class Fails(L.Callback):
        def setup(self, trainer, pl_module, stage):
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        runs.trainer(monitor(tmp_path), Fails()).fit(Guilty(), batches())


def test_a_folder_that_cannot_be_written_warns(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.warns(UserWarning, match="could not write its report"):
        fit(CompileMonitor(dirpath=blocked))


def test_without_an_hpu_it_says_so(tmp_path):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[CompileMonitor(max_host_reads=0, on_exceed="raise")],
    )
    with pytest.warns(UserWarning, match="CompileMonitor watches an HPU, and this Trainer has"):
        trainer.fit(Guilty("read"), batches())
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_no_steps(tmp_path):
    watched = monitor(tmp_path)
    runs.trainer(watched, max_steps=0, max_epochs=None).fit(Guilty(), batches())
    assert watched.facts["timeline"] == []
    assert (tmp_path / "compile_monitor.png").read_bytes()[:4] == b"\x89PNG"


# --- on a card ------------------------------------------------------------------------------------


def test_on_a_card_the_batch_is_named_and_reads_by_the_mode(tmp_path, monkeypatch):
    """Nothing asks the emulator: counts from the metrics, reads from the dispatch mode."""
    strategy = GaudiStrategy()
    monkeypatch.setattr(loading, "is_emulated", lambda: False)
    monkeypatch.setattr("lightning_gaudi.accelerator.HPUAccelerator.is_available", lambda: True)
    monkeypatch.setattr("lightning_gaudi.runtime.device.count", lambda: 1)
    watched = monitor(tmp_path, host_reads=True)
    fit(watched, "shape", "read", "fallback", strategy=strategy)
    assert late(watched, "host_read") == {(line_of("read"), ".item()", 7)}
    assert late(watched, "cpu_fallback") == {("", "_linalg_eigh", 7)}
    compilations = watched.ledger.worst("compilation")
    assert [(f.line, f.cause) for f in compilations] == [
        ("", f"batch of [4, {length}]:int64, [4]:int64") for length in (6, 7, 8, 9)
    ]
    assert [f.num_late for f in compilations] == [2] * 4  # forward and backward
    assert "emulated HPU" in compilations[0].remedy
    assert watched.facts["has_lines"] is False
    assert math.isclose(watched.facts["after_warmup"]["host_reads"], 7)
