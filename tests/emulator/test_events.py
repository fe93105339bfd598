"""`emulator.record`: ordered events with their cause and the user's line."""

from __future__ import annotations

import inspect

import habana_frameworks.torch.core as htcore
import pytest
import torch
from habana_frameworks.torch.hpu import HPUGraph, graph

from lightning_gaudi import emulator


def line_of(text: str) -> str:
    """``path:number`` of the one line of the calling test that ends with ``# text``."""
    frame = inspect.currentframe().f_back
    lines, start = inspect.getsourcelines(frame.f_code)
    (number,) = [i for i, line in enumerate(lines) if line.rstrip().endswith(f"# {text}")]
    return f"{__file__}:{start + number}"


def test_the_order_of_a_step():
    tensor = torch.ones(3)
    with emulator.record() as events:
        device = tensor.to("hpu")  # in
        total = (device * 2).sum()
        total.item()  # read
        device.cpu()  # out
        device.add_(1)
        htcore.mark_step()  # mark
    found = [(e.kind, e.cause, e.line) for e in events if e.kind != "compile"]
    assert found == [
        ("h2d", "copy_", line_of("in")),
        ("flush", "_local_scalar_dense", line_of("read")),
        ("host_read", "_local_scalar_dense", line_of("read")),
        ("d2h", "_to_copy", line_of("out")),
        ("mark_step", "mark_step", line_of("mark")),
        ("flush", "mark_step", line_of("mark")),
    ]


def test_the_order_of_a_capture():
    tensor = torch.ones(2, device="hpu")
    htcore.mark_step()
    captured = HPUGraph()
    with emulator.record() as events:
        with graph(captured):
            tensor + 1
        captured.replay()
    kinds = [event.kind for event in events if event.kind != "compile"]
    assert kinds == ["capture_begin", "flush", "capture_end", "replay"]


def test_reads_name_what_read():
    tensor = torch.ones(2, device="hpu")
    with emulator.record() as events:
        tensor.tolist()
        repr(tensor)
        bool(tensor[0])
        torch.nonzero(tensor)
    assert [event.cause for event in events if event.kind == "host_read"] == [
        "tolist",
        "repr",
        "_local_scalar_dense",
        "nonzero",
    ]


def test_the_line_is_the_users_not_the_librarys():
    linear = torch.nn.Linear(2, 2).to("hpu")

    def helper(batch: torch.Tensor) -> float:
        return linear(batch).sum().item()  # deep

    with emulator.record() as events:
        helper(torch.ones(1, 2, device="hpu"))
    (read,) = [event for event in events if event.kind == "host_read"]
    assert read.line.startswith(__file__)
    assert read.line == f"{__file__}:{inspect.getsourcelines(helper)[1] + 1}"


def test_records_nest_and_end():
    tensor = torch.ones(2, device="hpu")
    with emulator.record() as outer:
        tensor.tolist()
        with emulator.record() as inner:
            tensor.tolist()
        tensor.tolist()
    tensor.tolist()
    count = [sum(e.kind == "host_read" for e in events) for events in (outer, inner)]
    assert count == [3, 1]


def test_a_record_ends_on_an_exception():
    with pytest.raises(KeyError), emulator.record() as events:
        raise KeyError
    torch.ones(2, device="hpu").tolist()
    assert events == []


def test_counts_go_on_without_a_record():
    before = emulator.event_counts()
    tensor = torch.ones(2).to("hpu")
    tensor.tolist()
    after = emulator.event_counts()
    difference = {kind: after[kind] - before[kind] for kind in after if after[kind] != before[kind]}
    assert difference == {"h2d": 1, "d2h": 1, "host_read": 1}
    assert set(after) == set(emulator.EVENT_KINDS)
    before["h2d"] = -1
    assert emulator.event_counts()["h2d"] == after["h2d"]


def test_an_event_is_a_value():
    with emulator.record() as events:
        htcore.mark_step()
    (event,) = [event for event in events if event.kind == "mark_step"]
    assert event == emulator.Event(kind="mark_step", cause="mark_step", line=event.line)
    with pytest.raises(AttributeError):
        event.kind = "flush"
