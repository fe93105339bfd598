"""Captures held wrong raise with the reason; what a card does silently, it does here."""

from __future__ import annotations

import gc

import pytest
import torch
from habana_frameworks.torch.hpu import HPUGraph, graph, is_current_stream_capturing
from torch import Tensor, nn

from lightning_gaudi import emulator
from lightning_gaudi.emulator import GraphCaptureError


@pytest.fixture(autouse=True)
def _no_collection_in_a_capture():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def hpu(*shape: int) -> Tensor:
    return torch.randn(*shape).to("hpu")


def test_a_capture_ends_on_the_stream_that_it_began_on():
    captured, x = HPUGraph(), hpu(2)
    captured.capture_begin()
    y = x.detach() * 2
    with (
        torch.hpu.stream(torch.hpu.Stream()),
        pytest.raises(GraphCaptureError, match=r"aborts the process on a card \(CARD.md 2\)"),
    ):
        captured.capture_end()
    captured.capture_end()  # the capture went on
    x.fill_(4.0)
    captured.replay()
    assert y.tolist() == [8.0, 8.0]


def test_the_graph_context_runs_on_a_stream_of_its_own_or_the_given():
    mine = torch.hpu.Stream()
    with graph(HPUGraph(), stream=mine):
        assert torch.hpu.current_stream() == mine
    with graph(HPUGraph()):
        shared = torch.hpu.current_stream()
        assert shared != torch.hpu.default_stream()
    with graph(HPUGraph()):
        assert torch.hpu.current_stream() == shared
    assert torch.hpu.current_stream() == torch.hpu.default_stream()
    with pytest.raises(KeyError, match="mine"), graph(HPUGraph(), stream=mine):
        raise KeyError("mine")
    assert torch.hpu.current_stream() == torch.hpu.default_stream()
    outer, inner = HPUGraph(), HPUGraph()
    with graph(outer), pytest.raises(GraphCaptureError, match="nested"), graph(inner, mine):
        pytest.fail("the block must not run")
    assert torch.hpu.current_stream() == torch.hpu.default_stream()


def test_only_the_graph_context_marks_its_stream():
    captured = HPUGraph()
    captured.capture_begin()
    assert not is_current_stream_capturing()
    captured.capture_end()
    with graph(captured):
        assert is_current_stream_capturing()
        with torch.hpu.stream(torch.hpu.default_stream()):
            assert not is_current_stream_capturing()
    assert not is_current_stream_capturing()


def test_resetting_any_graph_during_a_capture_raises():
    other, captured = HPUGraph(), HPUGraph()
    with graph(captured):
        for each in (other, captured):
            with pytest.raises(GraphCaptureError, match=r"clears it on a card \(CARD\.md 1\)"):
                each.reset()


def test_garbage_collection_that_kills_a_graph_breaks_the_capture():
    cycle = [HPUGraph()]
    cycle.append(cycle)
    captured = HPUGraph()
    captured.capture_begin()
    del cycle
    gc.collect()
    with pytest.raises(GraphCaptureError, match="by hand or by the garbage collector"):
        captured.capture_end()


def test_a_graph_that_dies_while_it_captures_ends_the_capture():
    captured = HPUGraph()
    captured.capture_begin()
    del captured
    with graph(HPUGraph()):
        pass


def test_a_collective_is_refused():
    x = hpu(2)
    program = emulator.capture.Program()
    info = emulator.dispatch.OpInfo(torch.ops._c10d_functional.all_reduce.default)
    message = "all_reduce inside a capture: a card captures a collective only where PT_HPU_ENABLE"
    with pytest.raises(GraphCaptureError, match=message):
        program.check_collective(info)
    with pytest.raises(GraphCaptureError, match=message), graph(HPUGraph()):
        torch.ops._c10d_functional.all_reduce(x, "sum", "nobody")


@pytest.mark.slow
def test_a_collective_is_captured_where_the_bridge_would(run_python):
    code = """
        import os
        import torch, lightning_gaudi
        import torch.distributed as dist
        import habana_frameworks.torch.distributed.hccl
        from habana_frameworks.torch.hpu import HPUGraph, graph

        rank = os.fork() == 0
        store = dist.FileStore("store", 2)
        dist.init_process_group("hccl", store=store, rank=int(rank), world_size=2)
        static = torch.full((2,), 1.0 + rank, device="hpu")
        captured, dry = HPUGraph(), HPUGraph()
        with torch.no_grad(), graph(captured):
            total = static * 10
            dist.all_reduce(total)
            result = total + 1
        assert result.tolist() == [31.0, 31.0], result
        static.fill_(5.0 + rank)
        captured.replay()
        assert result.tolist() == [111.0, 111.0], result
        buffer = torch.full((2,), 1.0 + rank, device="hpu")
        with torch.no_grad(), graph(dry, dry_run=True):
            dist.broadcast(buffer, 0)
        assert buffer.tolist() == [1.0 + rank] * 2
        dry.replay()
        assert buffer.tolist() == [1.0, 1.0]
        dist.destroy_process_group()
        if rank:
            os._exit(0)
        assert os.wait()[1] == 0
        print("both agree")
    """
    result = run_python(code, PT_HPU_ENABLE_LAZY_COLLECTIVES="true")
    assert result.stdout == "both agree\n"


def test_each_flush_starts_a_sub_graph():
    x = hpu(2)

    def capture(function) -> str:
        with emulator.record() as events, torch.no_grad(), graph(HPUGraph()):
            function()
        (end,) = [event for event in events if event.kind == "capture_end"]
        return end.detail

    def split() -> None:
        y = x * 2
        torch.hpu.synchronize()
        (y + 1).sum().item()
        y.view(1, 2).t()

    assert capture(lambda: (x * 2).relu()).endswith("2 ops in 1 sub-graphs")
    assert capture(split).endswith("3 ops in 2 sub-graphs")
    assert capture(lambda: None).endswith("0 ops in 0 sub-graphs")


def test_a_capture_in_inference_mode_replays_outside_and_the_other_way_round():
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.GELU()).to("hpu")
    static = hpu(2, 3)
    inside, outside = HPUGraph(), HPUGraph()
    with torch.inference_mode(), graph(inside):
        first = module(static)
    with torch.no_grad(), graph(outside):
        second = module(static)
    static.copy_(hpu(2, 3))
    with torch.no_grad():
        expected = module(static).cpu()
    inside.replay()
    with torch.inference_mode():
        outside.replay()
    assert torch.equal(first.cpu(), expected)
    assert torch.equal(second.cpu(), expected)
