"""HPUGraphCallback inside Lightning: same answers, forwards always put back."""

from __future__ import annotations

import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_gaudi import GaudiStrategy, HPUGraphCallback, emulator
from lightning_gaudi.errors import ConfigurationError, HostReadError
from lightning_gaudi.graphs import GraphedForward


class Classifier(L.LightningModule):
    """Children are called by the steps; there is no forward."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)
        self.accuracy = MulticlassAccuracy(3, average="micro")

    def logits(self, x):
        return self.head(self.body(x))

    def step(self, batch, name):
        x, y = batch
        logits = self.logits(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.accuracy.update(logits, y)
        self.log(f"{name}_loss", loss)
        self.log(f"{name}_acc", self.accuracy)
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        return self.step(batch, "val")

    def test_step(self, batch, batch_idx):
        return self.step(batch, "test")

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self.logits(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class WithForward(Classifier):
    def forward(self, x):
        return self.head(self.body(x))

    def logits(self, x):
        return self(x)


def data(rows=22):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, 4, generator=generator)
    y = torch.randint(0, 3, (rows,), generator=generator)
    return DataLoader(list(zip(x, y, strict=True)), batch_size=4)  # the last batch is ragged


def trainer(*callbacks, **kwargs):
    kwargs = {
        "accelerator": "hpu",
        "strategy": GaudiStrategy(),
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 2,
        "callbacks": list(callbacks),
        **kwargs,
    }
    return L.Trainer(**kwargs)


def make(cls=Classifier):
    torch.manual_seed(3)
    return cls()


def has_own_forward(module):
    return [name for name, child in module.named_modules() if "forward" in child.__dict__]


def run_all(module, *callbacks, **kwargs):
    t = trainer(*callbacks, **kwargs)
    t.fit(module, data(), data())
    fitted = {k: float(v) for k, v in t.callback_metrics.items()}
    (validated,) = t.validate(module, data(), verbose=False)
    (tested,) = t.test(module, data(), verbose=False)
    predicted = torch.cat(t.predict(module, data()))
    return fitted, validated, tested, predicted


@pytest.mark.parametrize("cls", [Classifier, WithForward])
def test_all_stages_equal_op_by_op_to_the_last_bit(cls):
    plain = run_all(make(cls))
    module = make(cls)
    callback = HPUGraphCallback()
    graphed = run_all(module, callback)
    assert graphed[:3] == plain[:3]
    assert torch.equal(graphed[3], plain[3])
    assert has_own_forward(module) == []
    assert callback.stats.replays > callback.stats.captures > 0


def test_equal_to_stock_lightning_on_the_cpu():
    cpu = run_all(make(), accelerator="cpu", strategy="auto")
    hpu = run_all(make(), HPUGraphCallback())
    for ours, theirs in zip(hpu[:3], cpu[:3], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    torch.testing.assert_close(hpu[3], cpu[3], atol=1e-5, rtol=0)


def test_children_that_steps_call_are_the_targets():
    callback = HPUGraphCallback()
    trainer(callback).predict(make(), data())
    stats = callback.stats
    assert sorted(stats.per_target) == ["body", "head"]
    assert stats.per_target["body"].captures == 2  # whole and ragged batches
    assert stats.per_target["body"].replays == 4
    assert (stats.captures, stats.replays, stats.eager_calls, stats.evictions) == (4, 8, 0, 0)


def test_a_forward_of_the_class_is_the_target():
    callback = HPUGraphCallback()
    trainer(callback).predict(make(WithForward), data())
    assert sorted(callback.stats.per_target) == ["forward"]


def test_targets_by_name_and_by_attribute():
    callback = HPUGraphCallback(targets="body")
    trainer(callback).predict(make(), data())
    assert sorted(callback.stats.per_target) == ["body"]

    module = make()
    module.hpu_graph_targets = ["head"]
    callback = HPUGraphCallback()
    trainer(callback).predict(module, data())
    assert sorted(callback.stats.per_target) == ["head"]


def test_graphs_are_kept_over_the_validations_of_a_fit():
    callback = HPUGraphCallback()
    trainer(callback, max_epochs=4, num_sanity_val_steps=2).fit(make(), data(), data())
    assert callback.stats.per_target["body"].captures == 2
    assert callback.stats.per_target["body"].replays == 2 + 4 * 6 - 2


def test_weights_trained_between_validations_are_seen():
    class Spy(Classifier):
        def __init__(self):
            super().__init__()
            self.losses = []

        def validation_step(self, batch, batch_idx):
            self.losses.append(self.step(batch, "val").item())

    plain, graphed = make(Spy), make(Spy)
    trainer(max_epochs=3).fit(plain, data(), data())
    trainer(HPUGraphCallback(), max_epochs=3).fit(graphed, data(), data())
    assert graphed.losses == plain.losses
    assert len(set(graphed.losses)) > 10


def test_no_compilation_after_the_third_step_of_predict():
    rows = DataLoader(torch.randn(40, 4), batch_size=4)

    class Predictor(WithForward):
        def predict_step(self, batch, batch_idx):
            steps.append(len(events))
            return self(batch)

    steps: list[int] = []
    with emulator.record() as events:
        trainer(HPUGraphCallback()).predict(make(Predictor), rows)
    assert len(steps) == 10
    assert [e for e in events[steps[3] :] if e.kind == "compile"] == []
    assert [e.kind for e in events if e.kind == "replay"] == ["replay"] * 9


def test_a_named_target_that_no_step_calls_is_named_with_those_called():
    with pytest.warns(UserWarning, match="no step called 'unused'") as caught:
        trainer(HPUGraphCallback(targets=["unused"])).predict(make(), data())
    (message,) = [str(w.message) for w in caught if "no step called" in str(w.message)]
    assert "Children that were called: 'body', 'head'." in message


def test_a_forward_that_no_step_calls_is_named_too():
    class Bypassed(WithForward):
        def predict_step(self, batch, batch_idx):
            return self.head(self.body(batch[0]))

    with pytest.warns(UserWarning, match="no step called 'forward'.*'body', 'head'"):
        trainer(HPUGraphCallback()).predict(make(Bypassed), data())


def test_an_unknown_target_is_an_error_that_lists_the_children():
    with pytest.raises(ConfigurationError, match=r"no submodule 'bdoy'.*'body', 'head', 'unused'"):
        trainer(HPUGraphCallback(targets=["bdoy"])).predict(make(), data())


def test_stages_choose():
    callback = HPUGraphCallback(stages=["test"])
    module = make()
    t = trainer(callback)
    t.predict(module, data())
    assert callback.stats.calls == 0
    t.test(module, data(), verbose=False)
    assert callback.stats.captures > 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"stages": ["fit"]}, "stages must be of 'validate', 'test', 'predict', but 'fit'"),
        ({"max_graphs": 0}, "max_graphs must be a whole number"),
        ({"on_failure": "never"}, "on_failure must be 'raise' or 'eager'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        HPUGraphCallback(**kwargs)


class Boom(Exception):
    pass


@pytest.mark.parametrize("error", [Boom("mine"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
@pytest.mark.parametrize("when", [0, 1], ids=["capture", "replay"])
def test_forwards_come_back_after_an_exception(error, when):
    class Failing(WithForward):
        fails = True

        def forward(self, x):
            if self.fails and when == 0:
                raise error
            return super().forward(x)

        def predict_step(self, batch, batch_idx):
            result = super().predict_step(batch, batch_idx)
            if self.fails and batch_idx == when:
                raise error
            return result

    module = make(Failing)
    callback = HPUGraphCallback()
    t = trainer(callback)
    expected = SystemExit if isinstance(error, KeyboardInterrupt) else Boom
    with pytest.raises(expected) as caught:
        t.predict(module, data())
    if expected is Boom:
        assert caught.value is error
    assert has_own_forward(module) == []
    assert type(module.head.weight) is nn.Parameter
    assert module.head.weight.device.type == "cpu"
    module.fails = False
    again = torch.cat(trainer(callback).predict(module, data()))
    assert torch.equal(again, torch.cat(trainer().predict(module, data())))


def test_an_instance_forward_of_the_users_own_comes_back():
    module = make()

    def own(x, forward=module.head.forward):
        return forward(x) * 2

    module.head.forward = own
    plain = torch.cat(trainer().predict(module, data()))
    graphed = torch.cat(trainer(HPUGraphCallback()).predict(module, data()))
    assert module.head.__dict__["forward"] is own
    assert torch.equal(graphed, plain)


def test_swapped_only_during_the_stage():
    inside: list[object] = []

    class Look(Classifier):
        def predict_step(self, batch, batch_idx):
            inside.append(self.body.forward)
            return super().predict_step(batch, batch_idx)

    module = make(Look)
    names = set(module.state_dict())
    trainer(HPUGraphCallback()).predict(module, data())
    assert all(isinstance(forward, GraphedForward) for forward in inside)
    assert set(module.state_dict()) == names
    assert has_own_forward(module) == []


def test_a_host_read_in_a_forward_is_an_error_with_the_users_line():
    class Reads(WithForward):
        def forward(self, x):
            return super().forward(x) * x.mean().item()  # the line

    with pytest.raises(HostReadError, match=r"'forward'.*_local_scalar_dense.*test_graph\.py:\d+"):
        trainer(HPUGraphCallback()).predict(make(Reads), data())


def test_on_failure_eager_gives_the_right_answer_anyway():
    class Reads(WithForward):
        def forward(self, x):
            return super().forward(x) * x.mean().item()

    plain = torch.cat(trainer().predict(make(Reads), data()))
    callback = HPUGraphCallback(on_failure="eager")
    with pytest.warns(UserWarning, match="'forward' runs op by op from now on"):
        graphed = torch.cat(trainer(callback).predict(make(Reads), data()))
    assert torch.equal(graphed, plain)
    assert (callback.stats.captures, callback.stats.eager_calls) == (0, 6)


def test_metrics_that_keep_references_get_their_own_copies():
    from torchmetrics import CatMetric

    class Keeps(WithForward):
        def __init__(self):
            super().__init__()
            self.all = CatMetric()

        def predict_step(self, batch, batch_idx):
            out = self(batch[0])
            self.all.update(out)
            return out

        def on_predict_end(self):
            self.kept = self.all.compute().cpu()

    module = make(Keeps)
    predictions = torch.cat(trainer(HPUGraphCallback()).predict(module, data()))
    assert torch.equal(module.kept, predictions)


def test_metrics_among_the_children_are_not_captured():
    class Averages(Classifier):
        def __init__(self):
            super().__init__()
            self.mean = MeanMetric(nan_strategy="disable")

        def predict_step(self, batch, batch_idx):
            out = super().predict_step(batch, batch_idx)
            self.mean(out)
            return out

    module = make(Averages)
    callback = HPUGraphCallback()
    predictions = trainer(callback).predict(module, data())
    assert sorted(callback.stats.per_target) == ["body", "head"]
    assert float(module.mean.compute()) == pytest.approx(
        float(torch.cat(predictions).mean()), abs=1e-6
    )


def test_several_dataloaders():
    module = make()
    loaders = [data(), data(9)]
    plain = trainer().predict(module, loaders)
    graphed = trainer(HPUGraphCallback()).predict(module, loaders)
    for ours, theirs in zip(graphed, plain, strict=True):
        assert torch.equal(torch.cat(ours), torch.cat(theirs))


def test_early_stopping_and_checkpoints_see_the_same_metrics(tmp_path):
    def fit(*callbacks):
        stop = EarlyStopping("val_loss", patience=1)
        save = ModelCheckpoint(tmp_path, monitor="val_loss")
        t = trainer(stop, save, *callbacks, enable_checkpointing=True, max_epochs=6)
        t.fit(make(), data(), data())
        return t.current_epoch, float(stop.best_score), float(save.best_model_score)

    assert fit(HPUGraphCallback()) == fit()


def test_stats_are_logged_and_printed(tmp_path, capsys):
    logger = CSVLogger(tmp_path, version=0)
    callback = HPUGraphCallback()
    trainer(callback, logger=logger, log_every_n_steps=1).fit(make(), data(), data())
    text = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert "hpu_graph/captures" in text.splitlines()[0]
    printed = capsys.readouterr().out
    assert printed.count("HPU graphs") == 1
    assert "body" in printed
    assert "unused" not in printed


def test_graph_memory_is_given_back_at_the_end():
    import gc

    module = make()
    trainer(HPUGraphCallback()).predict(module, data())
    gc.collect()
    before = torch.hpu.memory_allocated()
    trainer(HPUGraphCallback()).predict(module, data())
    gc.collect()
    assert torch.hpu.memory_allocated() == before


def test_on_the_cpu_it_says_so_and_changes_nothing():
    module = make()
    with pytest.warns(UserWarning, match="HPU graphs exist in lazy mode on an HPU only"):
        graphed = trainer(HPUGraphCallback(), accelerator="cpu", strategy="auto").predict(
            module, data()
        )
    plain = trainer(accelerator="cpu", strategy="auto").predict(module, data())
    assert torch.equal(torch.cat(graphed), torch.cat(plain))


def test_says_nothing_where_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer(HPUGraphCallback()).predict(make(), data())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_other_precisions_equal_op_by_op(precision):
    plain = trainer(precision=precision).predict(make(), data())
    callback = HPUGraphCallback()
    graphed = trainer(callback, precision=precision).predict(make(), data())
    assert graphed[0].dtype == torch.bfloat16
    assert torch.equal(torch.cat(graphed), torch.cat(plain))
    assert callback.stats.replays == 8
