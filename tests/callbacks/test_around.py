"""What Lightning does around the swap: each run equals one without the callback."""

from __future__ import annotations

import warnings

import lightning
import lightning as L
import pytest
import torch
from callbacks.runs import Classifier, WithForward, data, has_own_forward, make, trainer
from lightning.pytorch.callbacks import (
    BasePredictionWriter,
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader
from torchmetrics import CatMetric
from torchmetrics.classification import BinaryAUROC

from lightning_gaudi import HPUGraphCallback


def weight_averaging(name, **settings):
    """A callback of `lightning.pytorch.callbacks` that older releases do not have."""
    if not hasattr(lightning.pytorch.callbacks, name):
        pytest.skip(f"lightning {lightning.__version__} has no {name}")
    return getattr(lightning.pytorch.callbacks, name)(**settings)


def weights(module):
    return [value.cpu().clone() for value in module.state_dict().values()]


def assert_equal(one, other):
    assert len(one) == len(other)
    assert all(map(torch.equal, one, other))


def fit(*callbacks, cls=Classifier, with_graphs, graphs=None, **settings):
    """Fit, validate and predict; what came out of each, and the module."""
    module = make(cls)
    graphs = [graphs or HPUGraphCallback()] if with_graphs else []
    t = trainer(*graphs, *callbacks, **{"max_epochs": 3, **settings})
    t.fit(module, data(), data())
    found = {k: float(v) for k, v in t.callback_metrics.items()}
    (validated,) = t.validate(module, data(), verbose=False)
    predicted = torch.cat(t.predict(module, data()))
    assert has_own_forward(module) == []
    return found, validated, [*weights(module), predicted]


def assert_fits_equal(*make_callbacks, **settings):
    plain = fit(*[make() for make in make_callbacks], with_graphs=False, **settings)
    graphed = fit(*[make() for make in make_callbacks], with_graphs=True, **settings)
    assert graphed[:2] == plain[:2]
    assert_equal(graphed[2], plain[2])


@pytest.mark.parametrize("stages", [("validate", "test", "predict"), ("fit", "validate")], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_sanity_val_steps": 2, "val_check_interval": 2},
        {"num_sanity_val_steps": -1, "check_val_every_n_epoch": 2},
        {"inference_mode": False},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"limit_train_batches": 3, "limit_val_batches": 2, "limit_predict_batches": 0.5},
        {"fast_dev_run": True},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
        {"overfit_batches": 2},
    ],
    ids=str,
)
def test_settings_of_the_trainer(settings, stages):
    plain = fit(with_graphs=False, **settings)
    graphed = fit(with_graphs=True, graphs=HPUGraphCallback(stages), **settings)
    assert graphed[:2] == plain[:2]
    assert_equal(graphed[2], plain[2])


@pytest.mark.parametrize(
    "make_callback",
    [
        lambda: EarlyStopping("val_loss", patience=1, min_delta=0.2),
        lambda: weight_averaging("EMAWeightAveraging", decay=0.5),
        lambda: weight_averaging("WeightAveraging", avg_fn=get_ema_avg_fn(0.3)),
        lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1),
        lambda: Timer(duration={"hours": 1}),
    ],
    ids=["EarlyStopping", "EMA", "WeightAveraging", "SWA", "Timer"],
)
@pytest.mark.parametrize("stages", [("validate", "predict"), ("fit", "validate")], ids=str)
def test_callbacks_that_stop_or_swap_weights(make_callback, stages):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Swapping scheduler")
        plain = fit(make_callback(), with_graphs=False, max_epochs=4)
        graphed = fit(
            make_callback(), with_graphs=True, graphs=HPUGraphCallback(stages), max_epochs=4
        )
    assert graphed[:2] == plain[:2]
    assert_equal(graphed[2], plain[2])


def test_anomaly_detection_trains_op_by_op():
    plain = fit(cls=WithForward, with_graphs=False, detect_anomaly=True)
    ours = HPUGraphCallback(("fit", "validate"))
    with pytest.warns(UserWarning, match="'forward' trains op by op.*anomaly detection"):
        graphed = fit(cls=WithForward, with_graphs=True, graphs=ours, detect_anomaly=True)
    assert graphed[:2] == plain[:2]
    assert_equal(graphed[2], plain[2])


def test_replaced_weights_between_validations_are_seen():
    class Replaces(Callback):
        def on_validation_start(self, trainer, pl_module):
            pl_module.head.weight.data = pl_module.head.weight.detach().clone() * 0.5

    assert_fits_equal(Replaces)


def test_the_order_of_callbacks_does_not_matter():
    plain = fit(with_graphs=False)

    class Reads(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, *_):
            pl_module(torch.zeros(2, 4, device=pl_module.device))

    for order in (0, 1):
        module = make(WithForward)
        callbacks = [HPUGraphCallback(), Reads()]
        t = trainer(*(callbacks if order else callbacks[::-1]), max_epochs=3)
        t.fit(module, data(), data())
        assert {k: float(v) for k, v in t.callback_metrics.items()} == plain[0]
        assert has_own_forward(module) == []


def test_two_callbacks_at_once():
    module = make()
    first, second = HPUGraphCallback(targets="body"), HPUGraphCallback()
    predictions = trainer(first, second).predict(module, data())
    assert torch.equal(torch.cat(predictions), torch.cat(trainer().predict(make(), data())))
    assert has_own_forward(module) == []
    assert second.stats.replays > 0


def test_one_callback_in_two_trainers():
    callback = HPUGraphCallback(pad_batch=False)
    module = make()
    first = torch.cat(trainer(callback).predict(module, data()))
    counts = callback.stats.captures
    second = torch.cat(trainer(callback).predict(make(WithForward), data()))
    assert torch.equal(first, second)
    assert counts == 4
    assert callback.stats.per_target["forward"].captures == 2
    assert callback.stats.captures == 6


def test_fit_again_and_validate_after():
    def run(*callbacks):
        module = make()
        t = trainer(*callbacks, max_epochs=2)
        t.fit(module, data(), data())
        first = t.validate(module, data(), verbose=False)
        t.fit_loop.max_epochs = 4
        t.fit(module, data(), data())
        return first, t.validate(module, data(), verbose=False), weights(module)

    plain, graphed = run(), run(HPUGraphCallback())
    assert graphed[:2] == plain[:2]
    assert_equal(graphed[2], plain[2])


def test_checkpoints_have_the_same_keys_and_values(tmp_path):
    def run(*callbacks, where):
        save = ModelCheckpoint(tmp_path / where, every_n_train_steps=2, save_last=True)
        t = trainer(save, *callbacks, enable_checkpointing=True)
        t.fit(make(), data(), data())
        return torch.load(save.last_model_path, weights_only=False)

    def resume(*callbacks, where):
        save = ModelCheckpoint(tmp_path / where, every_n_train_steps=2)
        t = trainer(save, *callbacks, enable_checkpointing=True)
        t.fit_loop.max_epochs = 3
        t.fit(make(), data(), data(), ckpt_path=tmp_path / where / "last.ckpt")
        return {k: float(v) for k, v in t.callback_metrics.items()}

    plain = run(where="plain")
    graphed = run(HPUGraphCallback(("fit", "validate")), where="graphed")
    assert graphed["state_dict"].keys() == plain["state_dict"].keys()
    assert_equal([*graphed["state_dict"].values()], [*plain["state_dict"].values()])
    assert resume(HPUGraphCallback(), where="graphed") == resume(where="plain")


# --- results --------------------------------------------------------------------------------------


class Metrics(WithForward):
    """Metrics over all rows, one of them with list states, and losses by row."""

    def __init__(self):
        super().__init__()
        self.all = CatMetric()
        self.auroc = BinaryAUROC()

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        x, y = batch
        logits = self(x)
        self.all.update(nn.functional.cross_entropy(logits, y, reduction="none"))
        self.auroc.update(logits[:, 0].float(), (y == 0).long())
        self.log("loss", nn.functional.cross_entropy(logits, y), batch_size=len(y))

    def on_test_epoch_end(self):
        self.found = self.all.compute().cpu(), self.auroc.compute().cpu()


@pytest.mark.filterwarnings("ignore:No positive samples")
@pytest.mark.parametrize("rows", [22, 21, 3, 20])
def test_metrics_over_a_ragged_data_set_to_the_last_row(rows):
    plain, graphed = make(Metrics), make(Metrics)
    (expected,) = trainer().test(plain, data(rows), verbose=False)
    callback = HPUGraphCallback()
    (found,) = trainer(callback).test(graphed, data(rows), verbose=False)
    assert found == pytest.approx(expected, rel=1e-6)
    assert graphed.found[0].shape == (rows,)
    for one, other in zip(graphed.found, plain.found, strict=True):
        torch.testing.assert_close(one, other)
    assert callback.stats.padded_calls == (1 if rows in (22, 21) else 0)


def test_several_dataloaders_of_several_sizes():
    loaders = [data(), data(9), DataLoader(list(data().dataset), batch_size=3)]
    module = make(Metrics)
    plain = trainer().test(module, loaders, verbose=False)
    found = trainer(HPUGraphCallback()).test(make(Metrics), loaders, verbose=False)
    for one, other in zip(found, plain, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_a_prediction_writer_and_no_returned_predictions():
    class Writer(BasePredictionWriter):
        def __init__(self):
            super().__init__("batch_and_epoch")
            self.batches, self.epoch = [], None

        def write_on_batch_end(self, trainer, pl_module, prediction, *args):
            self.batches.append(prediction)

        def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
            self.epoch = predictions

    expected = torch.cat(trainer().predict(make(), data()))
    writer = Writer()
    t = trainer(HPUGraphCallback(), writer)
    assert t.predict(make(), data(), return_predictions=False) is None
    assert torch.equal(torch.cat([batch.cpu() for batch in writer.batches]), expected)
    assert torch.equal(torch.cat([batch.cpu() for batch in writer.epoch]), expected)


# --- the tuner ------------------------------------------------------------------------------------


class Tuned(Classifier):
    def __init__(self):
        super().__init__()
        self.lr = 0.1
        self.batch_size = 2

    def loader(self):
        return DataLoader(data().dataset, batch_size=self.batch_size)

    train_dataloader = val_dataloader = loader

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


def test_the_learning_rate_finder(tmp_path):
    def run(*callbacks):
        module = make(Tuned)
        t = trainer(*callbacks, default_root_dir=tmp_path)
        finder = Tuner(t).lr_find(module, num_training=12, update_attr=True)
        t.fit(module)
        assert has_own_forward(module) == []
        return finder.results["loss"], module.lr, weights(module)

    plain, graphed = run(), run(HPUGraphCallback(("fit", "validate")))
    assert graphed[:2] == plain[:2]
    assert_equal(graphed[2], plain[2])


@pytest.mark.parametrize("method", ["fit", "validate"])
def test_the_batch_size_finder(tmp_path, method):
    def run(*callbacks):
        module = make(Tuned)
        t = trainer(*callbacks, default_root_dir=tmp_path)
        Tuner(t).scale_batch_size(module, method=method, max_trials=2, steps_per_trial=2)
        assert has_own_forward(module) == []
        return module.batch_size, weights(module)

    plain, graphed = run(), run(HPUGraphCallback(("fit", "validate")))
    assert graphed[0] == plain[0] > 2
    assert_equal(graphed[1], plain[1])


def test_a_datamodule():
    class Module(L.LightningDataModule):
        def train_dataloader(self):
            return data()

        def val_dataloader(self):
            return [data(), data(10)]

    class Two(Classifier):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("val_loss", nn.functional.cross_entropy(self.logits(batch[0]), batch[1]))

    def run(*callbacks):
        t = trainer(*callbacks)
        t.fit(make(Two), datamodule=Module())
        return {k: float(v) for k, v in t.callback_metrics.items()}

    assert run(HPUGraphCallback(("fit", "validate"))) == pytest.approx(run(), rel=1e-6)
