"""Graphs captured ahead, from shapes or example calls."""

from __future__ import annotations

import pytest
import torch
from cases_of_graphs import assert_same, drawn
from torch import nn

from lightning_gaudi import emulator
from lightning_gaudi.errors import ConfigurationError, HostReadError
from lightning_gaudi.graphs import GraphedForward

BINDINGS = pytest.mark.parametrize("binds", [False, True], ids=["private", "bound"])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, input_ids, attention_mask=None, scale=1.0):
        x = self.embedding(input_ids).sum(1)
        if attention_mask is not None:
            x = x * attention_mask.sum(1, keepdim=True)
        return {"x": self.norm(x) * scale}


def make(binds=False, **options):
    torch.manual_seed(2)
    model = Model().to("hpu").requires_grad_(False)
    return model, GraphedForward(model, disable_tensor_cache=binds, pad_batch=False, **options)


def ids(rows, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 10, (rows, length), generator=generator).to("hpu")


@BINDINGS
def test_calls_after_it_replay_and_are_right(binds):
    model, graphed = make(binds)
    twin, _ = make()
    with emulator.record() as events:
        graphed.warmup(
            [
                {"input_ids": torch.empty(2, 3, dtype=torch.int64, device="meta")},
                (torch.zeros(4, 3, dtype=torch.int64),),
                {"input_ids": ids(2, 5), "attention_mask": torch.Size([2, 5]), "scale": 2.0},
            ]
        )
    assert [e.detail for e in events if e.kind == "capture_begin"] == ["dry run"] * 3
    assert not [e for e in events if e.kind == "replay"]
    assert (graphed.stats.captures, graphed.stats.calls, graphed.num_graphs) == (3, 3, 3)
    calls = [
        ((), {"input_ids": ids(2, 3, seed=1)}),
        ((ids(4, 3, seed=2),), {}),
        ((), {"input_ids": ids(2, 5), "attention_mask": drawn(2, 5, seed=3), "scale": 2.0}),
    ]
    for args, kwargs in calls * 2:
        assert_same(graphed(*args, **kwargs), twin(*args, **kwargs))
    assert (graphed.stats.captures, graphed.stats.replays) == (3, 6)
    for one, other in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(one.cpu(), other.cpu())


@BINDINGS
def test_state_and_random_numbers_stay(binds):
    model, graphed = make(binds)
    before = [buffer.cpu() for buffer in model.buffers()]
    state = torch.hpu.random.get_rng_state()
    graphed.warmup([(torch.zeros(4, 3, dtype=torch.int64),)])
    assert all(torch.equal(a, b.cpu()) for a, b in zip(before, model.buffers(), strict=True))
    assert torch.equal(state, torch.hpu.random.get_rng_state())
    drawing = GraphedForward(lambda x: x + torch.rand_like(x), disable_tensor_cache=binds)
    drawing.warmup([(8,)])
    assert torch.equal(state, torch.hpu.random.get_rng_state())
    assert_same(drawing(torch.zeros(8, device="hpu")), draw_from(state))


def draw_from(state):
    torch.hpu.random.set_rng_state(state)
    return torch.rand(8, device="hpu")


def test_a_shape_means_one_tensor_of_the_default_dtype():
    graphed = GraphedForward(lambda x: x * 2, pad_batch=False)
    graphed.warmup([(2, 3), torch.Size([4]), drawn(5, seed=0)])
    for shape in ((2, 3), (4,), (5,)):
        assert_same(graphed(drawn(*shape, seed=1)), drawn(*shape, seed=1) * 2)
    assert (graphed.stats.captures, graphed.stats.replays) == (3, 3)


def test_a_kind_of_call_is_captured_once():
    graphed = GraphedForward(lambda x: x * 2, pad_batch=False)
    graphed.warmup([(2, 3), (2, 3)])
    graphed.warmup([(2, 3)])
    assert graphed.stats.captures == 1


def test_an_input_that_is_written_to_and_inference_mode():
    def forward(x, cache):
        cache += x
        return cache * 2

    graphed = GraphedForward(forward, pad_batch=False)
    graphed.warmup([(torch.Size([3]), torch.Size([3]))])
    with torch.inference_mode():
        ours, theirs = drawn(3, seed=5), drawn(3, seed=5)
        assert_same(graphed(drawn(3, seed=1), ours), forward(drawn(3, seed=1), theirs))
        assert_same(ours, theirs)
    assert (graphed.stats.captures, graphed.stats.replays) == (1, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (3, "a warmup call must be a mapping of keyword arguments.*but it is 3"),
        ("x", "a warmup call must be a mapping"),
        ({1: (2,)}, "a warmup call must be a mapping"),
        ((object(),), "an object of type object among its arguments"),
    ],
)
def test_what_is_no_call_is_an_error(call, message):
    with pytest.raises(ConfigurationError, match=message):
        GraphedForward(lambda x: x * 2).warmup([call])


def test_a_forward_that_cannot_be_captured():
    def forward(x):
        return x * x.sum().item()

    with pytest.raises(HostReadError, match="reads a device value on the host"):
        GraphedForward(forward).warmup([(3,)])
    graphed = GraphedForward(forward, on_failure="eager")
    with pytest.warns(UserWarning, match="op by op from now on"):
        graphed.warmup([(3,), (4,)])
    assert_same(graphed(drawn(3, seed=0)), forward(drawn(3, seed=0)))
    assert (graphed.stats.captures, graphed.stats.eager_calls) == (0, 1)
