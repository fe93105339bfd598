"""HPUGraphCallback inside Lightning: same answers, forwards always put back."""

from __future__ import annotations

import warnings

import pytest
import torch
from callbacks.runs import (
    Classifier,
    WithForward,
    data,
    has_own_forward,
    make,
    run_all,
    trainer,
)
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_gaudi import HPUGraphCallback, emulator
from lightning_gaudi.errors import HostReadError


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


def test_graphs_are_kept_over_the_validations_of_a_fit():
    callback = HPUGraphCallback(pad_batch=False)
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


def test_swapped_only_during_the_stage():
    inside: list[object] = []

    class Look(Classifier):
        def predict_step(self, batch, batch_idx):
            inside.append(self.body.__dict__["forward"])
            return super().predict_step(batch, batch_idx)

    module = make(Look)
    names = set(module.state_dict())
    trainer(HPUGraphCallback()).predict(module, data())
    assert len(inside) == 6
    assert len(set(map(id, inside))) == 1
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


def test_never_wrong_12_metrics_that_keep_references_get_their_own_copies():
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
    for column in ("captured", "replayed", "padded", "eager", "evicted", "seconds", "MiB"):
        assert column in printed
    # The rows of the last run stay when its graphs are gone.
    (row, *_) = callback.stats.per_target["body"].graphs
    assert row.capture_seconds > 0
    assert row.num_bytes > 0
    assert callback.stats.graph_bytes >= row.num_bytes


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
    with pytest.warns(UserWarning, match="there are HPU graphs on an HPU only"):
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
    callback = HPUGraphCallback(pad_batch=False)
    graphed = trainer(callback, precision=precision).predict(make(), data())
    assert graphed[0].dtype == torch.bfloat16
    assert torch.equal(torch.cat(graphed), torch.cat(plain))
    assert callback.stats.replays == 8
