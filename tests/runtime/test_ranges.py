"""Named ranges: what a profile shows, and nothing where nobody profiles."""

from __future__ import annotations

import timeit
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from traces import ranges_in, trace_of

from lightning_gaudi import emulator
from lightning_gaudi.graphs import GraphedForward
from lightning_gaudi.runtime import ranges
from lightning_gaudi.runtime.step import mark_step


def work(graphed: GraphedForward, inputs: torch.Tensor) -> None:
    """Two captures, two replays, one of them padded, and a mark step that flushes."""
    graphed.warmup([(2, 4)])
    with torch.no_grad():
        graphed(inputs)
        graphed(inputs + 1)
        graphed(inputs[:3])
    (inputs * 2).add_(1)
    mark_step()


def test_ranges_are_those_of_the_record(tmp_path: Path) -> None:
    graphed = GraphedForward(nn.Linear(4, 2).to("hpu"))
    inputs = torch.randn(4, 4).to("hpu")
    with (
        ranges.opened(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
        emulator.record() as events,
    ):
        work(graphed, inputs)
    found = Counter(each.name for each in ranges_in(trace_of(profile, tmp_path)))
    kinds = Counter(event.kind for event in events)
    assert kinds["mark_step"] == 1
    assert kinds["capture_end"] == 2
    assert kinds["replay"] >= 2
    assert graphed.stats.padded_calls == 1
    assert {name: found[name] for name in ranges.NAMES} == {
        "mark_step": kinds["mark_step"],
        "flush": kinds["flush"],
        "capture": kinds["capture_end"],
        "replay": kinds["replay"],
        "padded_call": 2,  # the first of its kind is compared with another
        "graph_warmup": 1,
    }


def test_ranges_lie_in_each_other(tmp_path: Path) -> None:
    graphed = GraphedForward(nn.Linear(4, 2).to("hpu"))
    inputs = torch.randn(4, 4).to("hpu")
    with (
        ranges.opened(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
    ):
        work(graphed, inputs)
    found = ranges_in(trace_of(profile, tmp_path))
    by_name = {name: [r for r in found if r.name == name] for name in ranges.NAMES}

    def held(outer: str, inner: str) -> list[int]:
        return [sum(each.holds(other) for other in by_name[inner]) for each in by_name[outer]]

    assert held("padded_call", "replay") == [1, 1]
    assert held("graph_warmup", "capture") == [1]
    assert held("mark_step", "flush") == [1]


def test_ranges_end_with_an_exception(tmp_path: Path) -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("mine")

    with (
        ranges.opened(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
    ):
        with pytest.raises(ValueError, match="mine"), torch.no_grad():
            GraphedForward(broken)(torch.ones(1).to("hpu"))
        mark_step()
    found = ranges_in(trace_of(profile, tmp_path))
    (capture,), (mark,) = ([r for r in found if r.name == n] for n in ("capture", "mark_step"))
    assert capture.end <= mark.start


def test_nobody_profiles() -> None:
    assert not ranges.is_on
    with ranges.opened():
        with ranges.opened():
            assert ranges.is_on
        assert ranges.is_on
    assert not ranges.is_on
    graphed = GraphedForward(nn.Linear(4, 2).to("hpu"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work(graphed, torch.randn(4, 4).to("hpu"))
    assert not {event.key for event in profile.key_averages()} & set(ranges.NAMES)


def test_a_range_in_a_captured_forward_is_no_host_read() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        mark_step()
        with torch.profiler.record_function("mine"):
            return x * 2

    graphed = GraphedForward(forward)
    x = torch.arange(3.0).to("hpu")
    with ranges.opened(), torch.no_grad():
        assert graphed(x).tolist() == [0, 2, 4]
        assert graphed(x + 1).tolist() == [2, 4, 6]
    assert (graphed.stats.captures, graphed.stats.replays) == (1, 1)


def _seconds(run: Any) -> float:
    return min(timeit.repeat(run, number=20_000, repeat=7)) / 20_000


def test_asking_costs_nothing() -> None:
    """At most 0.1 us for what every replay and every mark step asks."""

    def bare() -> None:
        pass

    def asking() -> None:
        if ranges.is_on:
            raise AssertionError

    assert _seconds(asking) - _seconds(bare) < 0.1e-6
