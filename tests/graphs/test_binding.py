"""Both ways to bind inputs answer like op by op; `disable_tensor_cache` needs less memory."""

from __future__ import annotations

import gc

import pytest
import torch
from cases_of_graphs import CASES, assert_same, drawn, tensors_in
from torch import nn

from lightning_gaudi import emulator
from lightning_gaudi.errors import CaptureError
from lightning_gaudi.graphs import GraphedForward


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def graphed_case(case, **options):
    fn, module = case.make()
    return GraphedForward(fn, module=module, pad_batch=False, **options), module


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("binds", [False, True], ids=["private", "bound"])
@pytest.mark.parametrize("name", CASES)
def test_equals_op_by_op(name, binds, inference):
    case = CASES[name]
    graphed, module = graphed_case(case, disable_tensor_cache=binds)
    fn, twin = case.make()
    for number in range(4):
        with torch.inference_mode(inference):
            ours, theirs = case.call(number), case.call(number)
            result, expected = graphed(*ours), fn(*theirs)
            assert_same(result, expected)
            assert_same(list(ours), list(theirs))
            # What op by op returns as it came, comes as it came.
            for one, other in zip(tensors_in(result), tensors_in(expected), strict=True):
                same = [a is other for a in tensors_in(theirs)]
                assert [a is one for a in tensors_in(ours)] == same
        if module is not None:
            for one, other in zip(
                module.state_dict().values(), twin.state_dict().values(), strict=True
            ):
                assert torch.equal(one.cpu(), other.cpu())
    assert (graphed.stats.captures, graphed.stats.replays) == (1, 3)


@pytest.mark.parametrize("name", CASES)
def test_bound_inputs_of_the_two_modes_share_a_graph(name):
    case = CASES[name]
    graphed, _ = graphed_case(case, disable_tensor_cache=True)
    fn, _ = case.make()
    for number in range(4):
        with torch.inference_mode(number % 2 == 0):
            assert_same(graphed(*case.call(number)), fn(*case.call(number)))
    assert graphed.stats.captures == 1


def test_card_rule_3_results_survive_and_the_callers_tensors_stay():
    graphed, _ = graphed_case(CASES["mlp"], disable_tensor_cache=True)
    fn, _ = CASES["mlp"].make()
    inputs = [drawn(3, 4, seed=n) for n in range(3)]
    outputs = [graphed(x) for x in inputs]
    for number, (x, output) in enumerate(zip(inputs, outputs, strict=True)):
        assert_same(x, drawn(3, 4, seed=number))
        assert_same(output, fn(x))


def test_random_ops_draw_anew_and_from_the_same_state():
    graphed = GraphedForward(lambda x: x + torch.rand_like(x), disable_tensor_cache=True)
    x = torch.zeros(8, device="hpu")
    torch.manual_seed(4)
    drawn_here = [graphed(x) for _ in range(3)]
    torch.manual_seed(4)
    for ours in drawn_here:
        assert_same(ours, torch.rand_like(x))


def test_autocast_and_weights_changed_in_place():
    graphed, module = graphed_case(CASES["mlp"], disable_tensor_cache=True)
    for number in range(3):
        x = drawn(3, 4, seed=number)
        with torch.autocast("hpu", dtype=torch.bfloat16):
            ours = graphed(x)
        with torch.autocast("hpu", dtype=torch.bfloat16):
            assert_same(ours, module(x))
        assert_same(graphed(x), module(x))
        module[0].weight.mul_(1.5)
    assert graphed.stats.captures == 2


def wide():
    torch.manual_seed(1)
    layers = [layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.Tanh())]
    return nn.Sequential(*layers).to("hpu").eval()


def bytes_of_graphs(binds):
    module = wide()
    graphed = GraphedForward(module, disable_tensor_cache=binds, pad_batch=False)
    gc.collect()
    before = torch.hpu.memory_stats()["InUse"]
    graphed(drawn(32, 64, seed=0))
    gc.collect()
    held = torch.hpu.memory_stats()["InUse"] - before
    assert graphed.stats.graph_bytes == held
    assert_same(graphed(drawn(32, 64, seed=1)), module(drawn(32, 64, seed=1)))
    return held


def test_bound_graphs_hold_no_memory_but_their_outputs():
    one_tensor = 32 * 64 * 4
    assert bytes_of_graphs(binds=True) == one_tensor
    # The input buffer, what each of the twelve layers computes, and a clone or two inside.
    assert bytes_of_graphs(binds=False) >= 13 * one_tensor


def test_card_rule_3_views_are_made_contiguous_and_the_rest_is_given_as_it_is():
    graphed = GraphedForward(lambda x: x * 2, disable_tensor_cache=True)
    x = drawn(4, 4, seed=0)
    graphed(x)
    given = []
    (captured,) = graphed._graphs.values()
    replay = captured.graph.replayV3
    captured.graph.replayV3 = lambda tensors, asynchronous: (
        given.append(list(tensors)),
        replay(tensors, asynchronous),
    )
    graphed(x)
    assert given.pop()[0] is x
    for view in (x.view(4, 4), x.t().contiguous().t(), drawn(8, 4, seed=1)[:4]):
        if view.is_contiguous():
            assert_same(graphed(view), view * 2)
            (copied,) = given.pop()
            assert copied is not view
            assert copied.is_contiguous()
            assert not copied._is_view()


def test_card_rule_3_the_first_result_comes_from_a_replay_too():
    graphed = GraphedForward(lambda x: x * 2, disable_tensor_cache=True)
    with emulator.record() as events:
        assert graphed(torch.ones(2, device="hpu")).tolist() == [2, 2]
    kinds = [(e.kind, e.detail) for e in events if e.kind in ("capture_begin", "replay")]
    assert kinds == [("capture_begin", "dry run"), ("replay", "")]
    assert (graphed.stats.captures, graphed.stats.replays) == (1, 0)


def test_a_forward_that_writes_to_two_names_for_one_memory_is_refused():
    def forward(x, row):
        x.add_(1)
        return row * 1

    x = drawn(3, 4, seed=0)
    with pytest.raises(CaptureError, match="some of its arguments share memory"):
        GraphedForward(forward, disable_tensor_cache=True)(x, x[:1])
    assert_same(x, drawn(3, 4, seed=0))  # a dry run computes nothing


@pytest.mark.parametrize("binds", [False, True], ids=["private", "bound"])
def test_asynchronous_is_passed_to_each_replay(binds):
    asked = []
    for asynchronous in (False, True):
        graphed = GraphedForward(
            lambda x: x * 2, asynchronous=asynchronous, disable_tensor_cache=binds
        )
        graphed(drawn(2, seed=0))
        (captured,) = graphed._graphs.values()
        name = "replayV3" if binds else "replay"
        original = getattr(captured.graph, name)

        def asking(*args, original=original):
            asked.append(args[-1])
            return original(*args)

        setattr(captured.graph, name, asking)
        assert_same(graphed(drawn(2, seed=1)), drawn(2, seed=1) * 2)
    assert asked == [False, True]
