"""Which forwards `HPUGraphCallback` swaps."""

from __future__ import annotations

import pytest
import torch
from callbacks.runs import (
    Classifier,
    WithForward,
    data,
    has_own_forward,
    make,
    trainer,
)
from torch import nn
from torchmetrics import MeanMetric

from lightning_gaudi import HPUGraphCallback
from lightning_gaudi.errors import ConfigurationError


def test_children_that_steps_call_are_the_targets():
    callback = HPUGraphCallback(pad_batch=False)
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


def test_a_target_of_the_modules_own_that_no_step_calls_is_named_too():
    module = make()
    module.hpu_graph_targets = ["unused"]
    with pytest.warns(UserWarning, match="no step called 'unused'.*'body', 'head'"):
        trainer(HPUGraphCallback()).predict(module, data())


def test_an_unknown_target_is_an_error_that_lists_the_children():
    with pytest.raises(ConfigurationError, match=r"no submodule 'bdoy'.*'body', 'head', 'unused'"):
        trainer(HPUGraphCallback(targets=["bdoy"])).predict(make(), data())


def test_an_instance_forward_of_the_users_own_comes_back():
    module = make()

    def own(x, forward=module.head.forward):
        return forward(x) * 2

    module.head.forward = own
    plain = torch.cat(trainer().predict(module, data()))
    graphed = torch.cat(trainer(HPUGraphCallback()).predict(module, data()))
    assert module.head.__dict__["forward"] is own
    assert torch.equal(graphed, plain)


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


def predictions(module, *callbacks, **settings):
    return torch.cat(trainer(*callbacks, **settings).predict(module, data()))


def test_a_target_inside_another_runs_as_part_of_it():
    module = make()
    callback = HPUGraphCallback(targets=["body", "body.0", "head"], pad_batch=False)
    assert torch.equal(predictions(module, callback), predictions(make()))
    assert sorted(callback.stats.per_target) == ["body", "head"]
    assert has_own_forward(module) == []


def test_a_target_inside_one_that_runs_op_by_op_has_graphs_of_its_own():
    def hooked():
        module = make()
        module.body[1].register_forward_hook(lambda *_: None)
        return module

    callback = HPUGraphCallback(targets=["body", "body.0"])
    with pytest.warns(UserWarning, match="'body' runs op by op"):
        found = predictions(hooked(), callback)
    assert torch.equal(found, predictions(hooked()))
    assert callback.stats.per_target["body"].captures == 0
    assert callback.stats.per_target["body.0"].replays >= 4


def test_one_module_under_two_names_is_one_target():
    module = make()
    module.again = module.body
    callback = HPUGraphCallback(targets=["again", "body"])
    assert torch.equal(predictions(module, callback), predictions(make()))
    assert sorted(callback.stats.per_target) == ["again"]


def test_children_in_lists_and_dicts_are_found():
    class Lists(Classifier):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
            self.named = nn.ModuleDict({"last": nn.Linear(3, 2)})

        def predict_step(self, batch, batch_idx):
            x = super().predict_step(batch, batch_idx)
            for layer in self.layers:
                x = layer(x)
            return self.named["last"](x)

    callback = HPUGraphCallback()
    assert torch.equal(predictions(make(Lists), callback), predictions(make(Lists)))
    assert sorted(callback.stats.per_target) == [
        "body",
        "head",
        "layers.0",
        "layers.1",
        "named.last",
    ]


def test_a_deep_name():
    callback = HPUGraphCallback(targets=["body.0"])
    assert torch.equal(predictions(make(), callback), predictions(make()))
    assert sorted(callback.stats.per_target) == ["body.0"]


@pytest.mark.parametrize("bad", [[1], []])
def test_an_attribute_that_names_nothing_is_an_error(bad):
    module = make()
    module.hpu_graph_targets = bad
    with pytest.raises(ConfigurationError, match=r"targets (must be names|is empty)"):
        predictions(module, HPUGraphCallback())


def test_a_scripted_child():
    class Scripted(Classifier):
        def __init__(self):
            super().__init__()
            # The emulated HPU does not see weights inside of one.
            with pytest.warns(DeprecationWarning, match="torch.jit"):
                self.last = torch.jit.trace(nn.Tanh(), torch.randn(2, 3))

        def logits(self, x):
            return self.last(super().logits(x))

    module = make(Scripted)
    callback = HPUGraphCallback()
    with pytest.warns(UserWarning, match="'last' run as they are, since a torch.jit module's"):
        found = predictions(module, callback)
    assert torch.equal(found, predictions(make(Scripted)))
    assert sorted(callback.stats.per_target) == ["body", "head"]
    with pytest.raises(ConfigurationError, match=r"'last' of Scripted is a torch\.jit module"):
        predictions(module, HPUGraphCallback(targets="last"))


class Compiled(Classifier):
    """A child is compiled, by a compiler that works in lazy mode."""

    def __init__(self):
        super().__init__()
        self.body = torch.compile(self.body, backend="eager")


@pytest.mark.slow
def test_a_compiled_child():
    module = make(Compiled)
    forward = module.body.forward
    callback = HPUGraphCallback(pad_batch=False)
    assert torch.equal(predictions(module, callback), predictions(make(Compiled)))
    assert callback.stats.per_target["body"].replays == 4
    assert module.body.forward is forward


@pytest.mark.slow
@pytest.mark.parametrize("cls", [Classifier, WithForward])
def test_a_compiled_lightning_module(cls):
    module = torch.compile(make(cls), backend="eager")
    callback = HPUGraphCallback()
    found = torch.cat(trainer(callback).predict(module, data()))
    assert torch.equal(found, predictions(make(cls)))
    assert callback.stats.replays >= 5
