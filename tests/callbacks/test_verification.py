"""`verify=True`: each replay is compared with running op by op."""

from __future__ import annotations

import pytest
import torch
from callbacks.runs import Classifier, WithForward, data, make, trainer
from torch import nn

from lightning_gaudi import HPUGraphCallback
from lightning_gaudi.callbacks.verification import VerifiedForward
from lightning_gaudi.errors import ReplayMismatchError
from lightning_gaudi.graphs import GraphedForward


def verified(module):
    graphed = GraphedForward(module.forward, module=module)
    return VerifiedForward(graphed, module.forward, module, "'it'")


def test_an_attribute_that_changes_is_found():
    class Scheduled(WithForward):
        def forward(self, x):
            return super().forward(x) * self.scale[0]

        def predict_step(self, batch, batch_idx):
            self.scale = [1.0 + (batch_idx == 3)]
            return self(batch[0])

    message = (
        r"'forward', called with \(\(4, 4\) float32\): output 0 of the replay differs from the "
        r"forward op by op, by up to [0-9.]+\. Something besides the arguments and the weights"
    )
    with pytest.raises(ReplayMismatchError, match=message):
        trainer(HPUGraphCallback(verify=True)).predict(make(Scheduled), data())
    trainer(HPUGraphCallback()).predict(make(Scheduled), data())  # wrong, and nothing says so


@pytest.mark.parametrize("stages", [("validate", "predict"), ("fit", "validate")], ids=str)
def test_all_is_well_with_what_writes_and_draws(stages):
    class Drops(Classifier):
        def __init__(self):
            super().__init__()
            self.body.append(nn.Dropout(0.5))

    def run(*callbacks):
        module = make(Drops)
        t = trainer(*callbacks)
        t.fit(module, data(), data())
        return torch.cat(t.predict(module, data())), [v.cpu() for v in module.state_dict().values()]

    found, expected = run(HPUGraphCallback(stages, verify=True)), run()
    assert torch.equal(found[0], expected[0])
    assert all(map(torch.equal, found[1], expected[1]))


@torch.no_grad()
def test_what_writes_to_buffers_or_arguments_runs_once_a_call():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    class Writes(nn.Module):
        def forward(self, x):
            return x.add_(1) * 2

    counts, writes = Counts().to("hpu"), Writes().to("hpu")
    call = verified(counts)
    assert [float(call(torch.ones(1).to("hpu"))) for _ in range(4)] == [1, 2, 3, 4]
    assert float(counts.calls) == 4
    assert call.num_compared == 0
    call = verified(writes)
    x = torch.zeros(1).to("hpu")
    assert [float(call(x)) for _ in range(3)] == [2, 4, 6]
    assert float(x) == 3
    assert call.num_compared == 0


@torch.no_grad()
def test_random_numbers_are_drawn_as_often_as_without():
    class Draws(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    module = Draws().to("hpu")
    call, plain = verified(module), GraphedForward(module.forward, module=module)
    x = torch.zeros(3).to("hpu")
    found = []
    for function in (call, plain):
        torch.manual_seed(4)
        found.append([function(x).cpu() for _ in range(4)])
    assert all(map(torch.equal, *found))
    assert call.num_compared == 0


@torch.no_grad()
def test_each_call_is_compared():
    module = nn.Linear(3, 3).to("hpu")
    call = verified(module)
    for seed in range(4):
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)).to("hpu")
        assert torch.equal(call(x), module(x))
    assert call.num_compared == 4


@torch.no_grad()
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda y: y.double(),
            r"is \(2, 3\) torch\.float64 in place of \(2, 3\) torch\.float32",
        ),
        (lambda y: (y, y), "returns another structure"),
        (lambda y: y + 0.25, r"by up to 0\.25"),
        (lambda y: y * torch.nan, "by up to "),
    ],
)
def test_what_is_told_of_a_difference(wrong, message):
    module = nn.Linear(3, 3).to("hpu")
    call = VerifiedForward(lambda x: wrong(module(x)), module.forward, module, "'it'")
    with pytest.raises(ReplayMismatchError, match=message):
        call(torch.ones(2, 3).to("hpu"))


@torch.no_grad()
def test_whole_numbers_are_counted():
    module = nn.Identity()
    call = VerifiedForward(lambda x: x + (x > 1), module.forward, module, "'it'")
    with pytest.raises(ReplayMismatchError, match="in 2 of 4 elements"):
        call(torch.arange(4).to("hpu"))
