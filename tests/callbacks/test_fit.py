"""Stage "fit": training through graphs equals training op by op to the last bit."""

from __future__ import annotations

import copy

import pytest
import torch
import training
from torch import nn
from torch.utils.data import DataLoader
from training import TiedGRU, TinyTransformer, features, mlp, tokens

from lightning_gaudi import HPUGraphCallback

pytestmark = training.IGNORED_WARNINGS


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
        )

    def forward(self, x):
        return self.layers(x)


NETWORKS = {
    "mlp": (mlp, features),
    "dropout": (Dropping, features),
    "transformer": (TinyTransformer, tokens),
    "gru": (TiedGRU, lambda: tokens(num_classes=None)),
}


def fit(network, loader, *callbacks, **settings):
    torch.manual_seed(2)
    module = training.Classifier(copy.deepcopy(network))
    torch.manual_seed(3)
    t = training.trainer(callbacks=list(callbacks), **{"max_epochs": 3, **settings})
    t.fit(module, loader(), loader())
    values = [value.cpu() for value in module.state_dict().values()]
    return module.losses, {k: float(v) for k, v in t.callback_metrics.items()}, values


def assert_same(found, expected):
    assert found[:2] == expected[:2]
    assert all(map(torch.equal, found[2], expected[2]))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
    ],
    ids=str,
)
def test_a_fit_equals_one_without(name, settings):
    make, loader = NETWORKS[name]
    torch.manual_seed(1)
    network = make()
    callback = HPUGraphCallback(("fit", "validate"))
    expected = fit(network, loader, **settings)
    assert_same(fit(network, loader, callback, **settings), expected)
    assert len(expected[0]) == 18
    stats = callback.stats
    assert list(stats.per_target) == ["network"]
    # Of training: one step observed, one captured. Of validation: one captured.
    assert (stats.captures, stats.eager_calls) == (2, 1)
    assert stats.replays >= 16 + 17


def test_weights_close_to_stock_lightning_on_the_cpu():
    torch.manual_seed(1)
    network = mlp()
    cpu = fit(network, features, accelerator="cpu")
    hpu = fit(network, features, HPUGraphCallback("fit"))
    for one, other in zip(hpu[2], cpu[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_ragged_last_batch_has_its_own_graph():
    def loader():
        return features(rows=22)

    callback = HPUGraphCallback("fit")
    assert_same(fit(mlp(), loader, callback), fit_same_network(loader))
    assert callback.stats.captures == 2


def fit_same_network(loader):
    """The network that the same seed makes."""
    torch.manual_seed(0)
    return fit(mlp(), loader)


def test_no_compilation_after_the_third_step():
    from lightning_gaudi import emulator

    starts = []

    class Watched(training.Classifier):
        def training_step(self, batch, batch_idx):
            starts.append(len(events))
            return super().training_step(batch, batch_idx)

    module = Watched(mlp(), lambda parameters: torch.optim.SGD(parameters, 0.1))
    t = training.trainer(callbacks=[HPUGraphCallback("fit")], max_epochs=2)
    with emulator.record() as events:
        t.fit(module, features())
    assert [e for e in events[starts[3] : starts[-1]] if e.kind == "compile"] == []


def test_manual_optimization_with_two_optimizers():
    class Manual(training.Classifier):
        automatic_optimization = False

        def __init__(self):
            super().__init__(mlp())
            self.automatic_optimization = False
            self.critic = nn.Linear(3, 1)

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            first.zero_grad()
            logits = self.network(batch[0])
            loss = nn.functional.cross_entropy(logits, batch[1]) - self.critic(logits).mean()
            self.manual_backward(loss)
            first.step()
            second.zero_grad()
            loss = self.critic(self.network(batch[0]).detach()).square().mean()
            self.manual_backward(loss)
            second.step()
            self.losses.append(loss.item())

        def configure_optimizers(self):
            return (
                torch.optim.SGD(self.network.parameters(), 0.1),
                torch.optim.Adam(self.critic.parameters(), 0.1),
            )

    def run(*callbacks):
        torch.manual_seed(1)
        module = Manual()
        training.trainer(callbacks=list(callbacks)).fit(module, features())
        return module.losses, [value.cpu() for value in module.state_dict().values()]

    callback = HPUGraphCallback("fit")
    found, expected = run(callback), run()
    assert found[0] == expected[0]
    assert all(map(torch.equal, found[1], expected[1]))
    assert callback.stats.per_target["critic"].replays > 10


def test_more_shapes_than_max_graphs_are_said_once():
    g = torch.Generator().manual_seed(1)
    batches = [(torch.randn(n, 4, generator=g), torch.zeros(n).long()) for n in (1, 2, 3, 4)]

    def loader():
        return DataLoader(batches, batch_size=None)

    callback = HPUGraphCallback("fit", max_graphs=2)
    torch.manual_seed(0)
    network = mlp()
    with pytest.warns(UserWarning, match="'network' trains op by op.*max_graphs=2") as caught:
        found = fit(network, loader, callback)
    assert_same(found, fit(network, loader))
    assert len([w for w in caught if "trains op by op" in str(w.message)]) == 1
    assert callback.stats.captures == 2
