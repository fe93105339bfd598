"""Graphs that are evicted, cleared or dropped give their memory back at once."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from cases_of_graphs import assert_same, drawn
from torch import nn

from lightning_gaudi.errors import CaptureError
from lightning_gaudi.graphs import GraphedForward
from lightning_gaudi.runtime import capture as hpu_capture


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def _no_collection():
    """Nothing may wait for the garbage collector but what a capture collects itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def in_use():
    return torch.hpu.memory_stats()["InUse"]


def make(**options):
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16)).to("hpu").eval()
    return module, GraphedForward(module, pad_batch=False, **options)


def references(graphed):
    """Weak references to all that a graph has, outputs aside."""
    found = []
    for captured in graphed._graphs.values():
        found += [weakref.ref(captured.graph), *map(weakref.ref, captured.buffers or [])]
    return found


def output_references(graphed):
    return [weakref.ref(t) for g in graphed._graphs.values() for t in g.output_tensors]


WAYS = {
    "private": {},
    "bound": {"disable_tensor_cache": True},
    "not cloned": {"clone_outputs": False},
    "bound, not cloned": {"disable_tensor_cache": True, "clone_outputs": False},
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("end", ["clear", "drop", "replace a weight"])
@pytest.mark.usefixtures("_no_collection")
def test_all_memory_comes_back(options, end):
    module, graphed = make(**options)
    inputs = [drawn(rows, 16, seed=rows) for rows in (1, 2, 3)]
    before = in_use()
    for x in inputs:
        graphed(x)
        assert_same(graphed(x), module(x))
    held = references(graphed) + output_references(graphed)
    assert in_use() > before
    assert all(reference() is not None for reference in held)
    if end == "clear":
        graphed.clear()
    elif end == "drop":
        del graphed
    else:
        module[0].weight.data = module[0].weight.data + 0
        with torch.enable_grad():
            graphed(inputs[0])  # the call that notices needs gradients, so it captures nothing
        module[0].zero_grad()
    assert [reference() for reference in held] == [None] * len(held)
    assert in_use() == before


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.usefixtures("_no_collection")
def test_what_the_user_holds_stays_right_and_is_all_that_stays(options):
    module, graphed = make(**options)
    x = drawn(8, 16, seed=0)
    before = in_use()
    graphed(x)
    result = graphed(x)
    held = references(graphed)
    graphed.clear()
    assert [reference() for reference in held] == [None] * len(held)
    assert in_use() == before + result.nbytes
    assert_same(result, module(x))
    del result
    assert in_use() == before


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.usefixtures("_no_collection")
def test_never_wrong_10_the_least_recently_used_graph_goes(options):
    module, graphed = make(max_graphs=2, **options)
    before = in_use()
    for rows in (1, 2, 1):
        graphed(drawn(rows, 16, seed=rows))
    held = references(graphed)
    with pytest.warns(UserWarning, match=r"more than max_graphs=2 kinds of arguments") as said:
        for rows in (3, 1, 4, 1):  # drops 2, none, 3, none
            assert_same(graphed(drawn(rows, 16, seed=9)), module(drawn(rows, 16, seed=9)))
    assert len(said) == 1
    assert (graphed.stats.captures, graphed.stats.evictions, graphed.num_graphs) == (4, 2, 2)
    size = len(held) // 2
    assert all(reference() is not None for reference in held[:size])  # of 1 row
    assert [reference() for reference in held[size:]] == [None] * size  # of 2
    assert sorted(row.inputs for row in graphed.stats.graphs) == ["1x16 float32", "4x16 float32"]
    assert graphed.stats.graph_bytes == sum(row.num_bytes for row in graphed.stats.graphs)
    assert in_use() == before + graphed.stats.graph_bytes


def test_a_graph_is_evicted_before_the_next_is_captured():
    module, graphed = make(max_graphs=1)
    graphed(drawn(64, 16, seed=0))
    (reference,) = [weakref.ref(captured.graph) for captured in graphed._graphs.values()]
    alive = []
    forward = graphed._fn

    class Looking(nn.Module):
        def forward(self, x):
            alive.append(reference() is not None)
            return forward(x)

    looking = Looking()
    object.__setattr__(graphed._recorder, "fn", looking.forward)
    with pytest.warns(UserWarning, match="max_graphs=1"):
        assert_same(graphed(drawn(3, 16, seed=1)), module(drawn(3, 16, seed=1)))
    assert alive == [False]


class Cycle:
    """Garbage that holds a graph until the collector comes."""

    def __init__(self, held):
        self.held = held
        self.itself = self


def test_card_rule_1_garbage_goes_before_a_capture_and_none_during_it():
    x = drawn(2, 16, seed=0)
    _, garbage = make()
    garbage(x)
    (captured,) = garbage._graphs.values()
    reference = weakref.ref(captured.graph)
    Cycle(garbage)
    del garbage, captured
    assert reference() is not None
    seen = []

    def forward(x):
        seen.append((reference(), gc.isenabled()))
        for _ in range(3):
            [[] for _ in range(2000)]  # would start a collection
        return x * 2

    graphed = GraphedForward(forward)
    assert_same(graphed(x), x * 2)
    assert seen == [(None, False)]
    assert gc.isenabled()


def test_graphs_are_not_dropped_during_another_capture():
    module, graphed = make()
    x = drawn(2, 16, seed=0)
    graphed(x)

    def forward(x):
        graphed.clear()
        return x * 2

    with pytest.raises(CaptureError, match=r"cannot drop the graphs of .*: a capture is in prog"):
        GraphedForward(forward)(x)
    assert graphed.num_graphs == 1
    assert_same(graphed(x), module(x))
    assert graphed.stats.replays == 1


def test_a_capture_that_fails_leaves_no_memory_behind():
    module, graphed = make()
    fail = True

    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            y = self.inner(x)
            if fail:
                raise ZeroDivisionError
            return y

    graphed = GraphedForward(Failing().eval(), pad_batch=False)
    x = drawn(4, 16, seed=0)
    gc.collect()
    before = in_use()
    with pytest.raises(ZeroDivisionError):
        graphed(x)
    gc.collect()
    assert in_use() == before
    fail = False
    assert_same(graphed(x), module(x))


def test_rows_tell_what_each_graph_is_and_holds():
    _, graphed = make()
    graphed(drawn(4, 16, seed=0))
    graphed(drawn(8, 16, seed=0))
    for _ in range(3):
        graphed(drawn(4, 16, seed=1))
    first, second = graphed.stats.graphs
    assert (first.inputs, first.replays, first.num_sub_graphs) == ("4x16 float32", 3, 1)
    assert (second.inputs, second.replays, second.num_sub_graphs) == ("8x16 float32", 0, 1)
    assert second.num_bytes == 2 * first.num_bytes > 0
    assert graphed.stats.capture_seconds == first.capture_seconds + second.capture_seconds > 0
    assert graphed.stats.as_dict()["graph_bytes"] == first.num_bytes + second.num_bytes
    assert "graphs" not in graphed.stats.as_dict()


def test_a_flush_inside_makes_a_further_sub_graph():
    from lightning_gaudi.runtime.step import mark_step

    def forward(x):
        y = x * 2
        mark_step()
        return y + 1

    graphed = GraphedForward(forward)
    assert_same(graphed(drawn(2, seed=0)), drawn(2, seed=0) * 2 + 1)
    assert [row.num_sub_graphs for row in graphed.stats.graphs] == [2]


def test_bytes_in_use_is_what_the_statistics_say():
    before = hpu_capture.bytes_in_use()
    kept = torch.zeros(1000, device="hpu")
    assert hpu_capture.bytes_in_use() - before == kept.nbytes
