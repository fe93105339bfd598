"""Captures compiled by Inductor: a replay against the same forward, op by op."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.distributed as dist
from habana_frameworks.torch.hpu import HPUGraph
from torch import Tensor, nn
from torch.nn import functional

from lightning_gaudi.emulator import inductor, lowering, memory, record

# Inductor's own, from an import of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")

has_compiler = True
try:
    inductor.check_compiler()
except inductor.NotCompiledError:
    has_compiler = False
needs_compiler = pytest.mark.skipif(not has_compiler, reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def _compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_COMPILE", "1")
    monkeypatch.setattr(inductor, "_warned", set())
    with torch.no_grad():
        yield
    os.environ.pop("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", None)  # Inductor's way to its loader


def capture(function: Callable[[], Any]) -> tuple[HPUGraph, Any]:
    graph = HPUGraph()
    graph.capture_begin()
    try:
        results = function()
    finally:
        graph.capture_end()
    return graph, results


def is_compiled(graph: HPUGraph) -> bool:
    program = graph._program
    assert program is not None
    return len(program.steps) == 1


def assert_close(result: Tensor, expected: Tensor) -> None:
    assert result.stride() == expected.stride()
    torch.testing.assert_close(result.cpu(), expected.cpu(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@needs_compiler
def test_new_inputs_and_weights_changed_in_place_against_eager():
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)).to("hpu")
    x = torch.randn(5, 4).to("hpu")
    in_use = memory.memory_stats()["InUse"]
    with record() as events:
        graph, result = capture(lambda: model(x))
    assert "; compiled in " in events[-1].detail
    assert events[-1].kind == "capture_end"
    assert is_compiled(graph)
    # What lies between input and result needs no memory.
    assert memory.memory_stats()["InUse"] - in_use == result.numel() * 4
    address = result.data_ptr()
    for _ in range(3):
        x.copy_(torch.randn(5, 4).to("hpu"))
        model[0].weight.mul_(1.5)
        graph.replay()
        assert_close(result, model(x))
    assert result.data_ptr() == address
    graph.reset()
    assert memory.memory_stats()["InUse"] - in_use == result.numel() * 4


@pytest.mark.slow
@needs_compiler
def test_views_aliases_and_writes_in_place_against_eager():
    cache, positions = torch.zeros(6, 4).to("hpu"), torch.tensor([1, 3]).to("hpu")
    buffer = torch.ones(2, 4).to("hpu")
    x = torch.randn(2, 4).to("hpu")

    def function() -> tuple[Tensor, ...]:
        cache[1:3] = x * 2
        cache.index_copy_(0, positions, x)
        cache.t()[0].add_(1)
        buffer.mul_(x)
        summed = x + 1
        turned = summed.t()
        summed.add_(1)
        first, second = torch.chunk(x * 3, 2, dim=1)
        second.zero_()
        filled = torch.empty(4, device="hpu")
        filled[0] = 1
        filled[1:].fill_(2)
        steps = torch.arange(3, device="hpu") + torch.ones(3, device="hpu")
        largest, places = torch.max(x, 1)
        return (
            summed,
            turned,
            turned * 2,
            x[0],
            x.t().reshape(-1),
            first,
            second,
            filled,
            steps,
            largest,
            places,
            x,
        )

    graph, results = capture(function)
    assert is_compiled(graph)
    for _ in range(3):
        x.copy_(torch.randn(2, 4).to("hpu"))
        before = cache.clone(), buffer.clone()
        graph.replay()
        replayed = [tensor.clone() for tensor in (*results, cache, buffer)]
        cache.copy_(before[0])
        buffer.copy_(before[1])
        for result, expected in zip(replayed, (*function(), cache, buffer), strict=True):
            torch.testing.assert_close(result.cpu(), expected.cpu())
    assert results[11] is x
    # Only what was computed in the graph is written at a replay; the rest stays the user's.
    results[3].fill_(9)
    assert x[0].tolist() == [9] * 4


@pytest.mark.slow
@needs_compiler
def test_memory_from_outside_that_is_met_in_several_pieces():
    cache = torch.zeros(6).to("hpu")
    head, middle = cache[:3], cache[2:5]
    x = torch.randn(3).to("hpu")

    def function() -> tuple[Tensor, ...]:
        head.add_(x)
        middle.mul_(2)
        mean = torch.ones_like(x).add_(cache[2:5])
        return (mean, torch.empty(3, device="hpu").fill_(2).mul_(cache.sum()))

    graph, results = capture(function)
    assert is_compiled(graph)
    # The cache once, x, and where the two results lie.
    assert len(graph._program.steps[0][1]) == 4
    for _ in range(3):
        x.copy_(torch.randn(3).to("hpu"))
        before = cache.clone()
        graph.replay()
        replayed = [tensor.clone() for tensor in (*results, cache)]
        cache.copy_(before)
        for result, expected in zip(replayed, (*function(), cache), strict=True):
            torch.testing.assert_close(result.cpu(), expected.cpu())


@pytest.mark.slow
@needs_compiler
def test_batch_norm_in_training_updates_its_statistics():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).to("hpu")
    x = torch.randn(2, 2, 5, 5).to("hpu")
    graph, result = capture(lambda: model(x))
    assert is_compiled(graph)
    before = [buffer.clone() for buffer in model.buffers()]
    x.copy_(torch.randn(2, 2, 5, 5).to("hpu"))
    graph.replay()
    after = [buffer.clone() for buffer in model.buffers()]
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)
    assert_close(result, model(x))
    for replayed, expected in zip(after, model.buffers(), strict=True):
        assert_close(replayed, expected)
    assert after[2].item() == before[2].item() + 1


@pytest.mark.slow
@needs_compiler
def test_attention_and_a_result_of_an_inference_mode_capture():
    query = torch.randn(1, 2, 4, 8).to("hpu")

    def function() -> Tensor:
        return functional.scaled_dot_product_attention(query, query, query)

    with torch.inference_mode():
        graph, result = capture(function)
    assert is_compiled(graph)
    query.copy_(torch.randn(1, 2, 4, 8).to("hpu"))
    graph.replay()
    assert_close(result, function())


def test_random_numbers_are_drawn_op_by_op_and_a_warning_says_so():
    x = torch.ones(64).to("hpu")
    with pytest.warns(UserWarning, match="run op by op instead: aten.bernoulli.* random numbers"):
        graph, result = capture(lambda: functional.dropout(x, 0.5))
    seen = set()
    for _ in range(3):
        graph.replay()
        assert set(result.tolist()) == {0.0, 2.0}
        seen.add(tuple(result.tolist()))
    assert len(seen) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        capture(lambda: functional.dropout(x, 0.5))


def test_collectives_are_run_op_by_op(monkeypatch):
    monkeypatch.setenv("PT_HPU_ENABLE_LAZY_COLLECTIVES", "true")
    import_module("habana_frameworks.torch.distributed.hccl")  # registers the backend
    dist.init_process_group("hccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x = torch.ones(3).to("hpu")

        def function() -> Tensor:
            doubled = x * 2
            dist.all_reduce(doubled)
            return doubled + 1

        with pytest.warns(UserWarning, match="op by op instead: a collective, which waits"):
            graph, result = capture(function)
        x.fill_(4)
        graph.replay()
        assert result.tolist() == [9, 9, 9]
    finally:
        dist.destroy_process_group()


def test_inputs_bound_at_each_replay_are_run_op_by_op():
    x = torch.ones(3).to("hpu")
    graph = HPUGraph()
    graph.capture_begin(dry_run=True)
    graph.mark_user_inputs([x])
    result = x * 2
    with pytest.warns(UserWarning, match="op by op instead: its inputs are given anew"):
        graph.capture_end()
    graph.mark_user_outputs([result])
    graph.replayV3([torch.full((3,), 4.0).to("hpu")])
    assert result.tolist() == [8, 8, 8]


def test_no_compiler_is_named_with_the_remedy():
    x = torch.ones(3).to("hpu")
    with (
        record() as events,
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.warns(UserWarning, match=r"looked for no-such-compiler.*apt-get install g\+\+"),
    ):
        graph, result = capture(lambda: x + 1)
    assert "; not compiled: no C++ compiler was found" in events[-1].detail
    x.fill_(4)
    graph.replay()
    assert result.tolist() == [5, 5, 5]


def test_what_inductor_cannot_do_is_run_op_by_op(monkeypatch):
    def fail(*args: Any, **options: Any) -> None:
        raise NotImplementedError("no lowering for this op\nand a long explanation")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    x = torch.ones(3).to("hpu")
    with pytest.warns(UserWarning, match="NotImplementedError: no lowering for this op$"):
        graph, result = capture(lambda: x * 3)
    x.fill_(2)
    graph.replay()
    assert result.tolist() == [6, 6, 6]


def test_a_forward_that_raises_is_not_compiled(monkeypatch):
    calls: list[Any] = []
    monkeypatch.setattr(lowering, "lower", lambda program, **options: calls.append(program) or "")
    x = torch.ones(3).to("hpu")

    def function() -> None:
        x.add(1)
        raise ValueError("the user's own")

    with pytest.raises(ValueError, match="the user's own"):
        capture(function)
    assert calls == []
    graph, _ = capture(lambda: x.add(1))
    assert calls == [graph._program]


def test_without_the_variable_nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("LIGHTNING_GAUDI_EMULATOR_COMPILE", "0")
    with record() as events:
        graph, _ = capture(lambda: torch.ones(3).to("hpu") + 1)
    assert not is_compiled(graph)
    assert "compiled" not in events[-1].detail
