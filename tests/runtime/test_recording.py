"""What the device did: the emulator's record, and a dispatch mode where a card keeps none."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from lightning_gaudi import emulator
from lightning_gaudi.emulator import accounting, events
from lightning_gaudi.runtime import loading, metrics
from lightning_gaudi.runtime.host_reads import HostReadMode, recorded_host_reads
from lightning_gaudi.runtime.recording import Counts, open_recording
from lightning_gaudi.runtime.step import mark_step


def x():
    return torch.tensor([1.0, -2.0, 3.0], device="hpu")


READS = {
    "item": lambda: x().sum().item(),
    "float": lambda: float(x()[0]) + int(x()[0]) + bool(x()[0]),
    "if": lambda: 1 if (x() > 0).all() else 2,
    "tolist": lambda: x().tolist(),
    "tolist of a number": lambda: x()[0].tolist(),
    "repr": lambda: repr(x()),
    "repr of a parameter": lambda: repr(nn.Parameter(x())),
    "format": lambda: f"{x()[0]:.2f}",
    "nonzero": lambda: x().nonzero(),
    "mask": lambda: x()[x() > 0],
    "mask written to": lambda: x().index_put_((x() > 0,), x()[:2]),
    "masked select": lambda: x().masked_select(x() > 0),
    "where": lambda: torch.where(x() > 0),
    "unique": lambda: x().unique(),
    "equal": lambda: torch.equal(x(), x()),
    "allclose": lambda: torch.allclose(x(), x()),
    "is_nonzero": lambda: torch.is_nonzero(x()[0]),
    "repeat": lambda: x().repeat_interleave(torch.tensor([1, 2, 1], device="hpu")),
    "argwhere": lambda: x().argwhere(),
    "cpu": lambda: x().cpu() + x().to("cpu"),
    "copy to the host": lambda: torch.zeros(3).copy_(x()),
    "numpy": lambda: x().numpy(force=True),
}
NO_READS = {
    "masked fill": lambda: x().masked_fill_(x() > 0, 0),
    "one value under a mask": lambda: x().index_put_((x() > 0,), torch.zeros(1, device="hpu")),
    "indices": lambda: x()[torch.tensor([0, 2], device="hpu")],
    "repeat by a number": lambda: x().repeat_interleave(2),
    "copy to the device": lambda: x().copy_(torch.ones(3)),
    "clip": lambda: nn.utils.clip_grad_norm_([nn.Parameter(x())], 1.0),
    "attention": lambda: nn.functional.scaled_dot_product_attention(*[x().view(1, 3, 1)] * 3),
    "train": lambda: nn.Linear(3, 2).to("hpu")(x()).sum().backward(),
    "embedding bag": lambda: nn.functional.dropout(x(), 0.5).sort(),
}


@pytest.mark.parametrize("mode", ["grad", "inference"])
@pytest.mark.parametrize("name", [*READS, *NO_READS])
def test_the_mode_sees_what_the_emulator_records(name, mode):
    if name == "train" and mode == "inference":
        pytest.skip("nothing is trained in inference mode")
    program = READS.get(name) or NO_READS[name]
    inference = torch.inference_mode(mode == "inference")
    with emulator.record() as recorded, HostReadMode() as noticed, inference:
        program()
    wanted = [(e.kind, e.line) for e in recorded if e.kind in ("host_read", "d2h")]
    assert [(e.kind, e.line) for e in noticed.events] == wanted
    assert bool(wanted) == (name in READS)


def test_the_mode_names_the_op_and_the_line_and_leaves_no_trace():
    tolist = torch.Tensor.tolist
    tensor = x()
    with HostReadMode() as mode:
        tensor.max().item()
        line = inspect.currentframe().f_lineno - 1
    tensor.tolist()
    assert [(e.kind, e.cause, e.line) for e in mode.events] == [
        ("host_read", "_local_scalar_dense", f"{__file__}:{line}")
    ]
    assert torch.Tensor.tolist is tolist


def test_numbers_that_are_read_past_the_dispatcher():
    """torch.tensor of device numbers turns all modes off; each number is a read on a card."""
    tensor = x()

    with HostReadMode() as mode:
        torch.tensor([tensor[0], tensor[1]])
    assert [(e.kind, e.cause) for e in mode.events] == [("host_read", "__float__")] * 2


def test_a_call_that_reads_many_times_is_one_read(monkeypatch):
    """As where a device's `tolist` were to read number by number."""
    kind = type(x())
    monkeypatch.setattr(kind, "tolist", lambda tensor: [value.item() for value in tensor])
    with HostReadMode() as mode:
        assert x().tolist() == [1, -2, 3]
        x()[0].item()
    assert [e.cause for e in mode.events] == ["tolist", "_local_scalar_dense"]


def test_the_mode_ends_on_an_exception():
    with pytest.raises(KeyError), HostReadMode() as mode:
        raise KeyError
    x().tolist()
    assert mode.events == []


def test_records_may_end_in_the_order_of_their_beginning():
    """As two callbacks of one Trainer do."""
    methods = {name: getattr(torch.Tensor, name) for name in ("tolist", "__float__", "__repr__")}
    first, second = recorded_host_reads(), recorded_host_reads()
    reads, more_reads = first.__enter__(), second.__enter__()
    x().tolist()
    first.__exit__(None, None, None)
    x()[0].item()
    second.__exit__(None, None, None)
    x().tolist()
    causes = [[e.cause for e in each if e.kind == "host_read"] for each in (reads, more_reads)]
    assert causes == [["tolist"], ["tolist", "_local_scalar_dense"]]
    for name, method in methods.items():
        assert getattr(torch.Tensor, name) is method
    with recorded_host_reads() as again, pytest.raises(KeyError):
        x()[0].item()
        raise KeyError
    assert len(again) == 1


@pytest.fixture
def recipes(monkeypatch):
    mark_step()
    monkeypatch.setattr(accounting, "cache", accounting.RecipeCache())


@pytest.mark.usefixtures("recipes")
def test_on_the_emulator_each_look_takes_what_is_new():
    recording = open_recording()
    try:
        for _ in range(3):
            (x() * 2).sum()
            mark_step()
        first = recording.take()
        x().sum().item()
        torch.linalg.eigvalsh(torch.eye(2, device="hpu"))
        x().cpu()
        second = recording.take()
        third = recording.take()
    finally:
        recording.close()
    assert first.counts == Counts(compilations=1, cache_hits=2)
    (event,) = first.events
    assert event.reason is not None
    assert event.reason.kind == "first"
    assert second.counts.host_reads == 1
    assert second.counts.cpu_fallbacks == 1
    assert second.counts.host_copies == 1
    assert [e.kind for e in second.events if e.kind != "compile"] == [
        "host_read",
        "cpu_fallback",
        "d2h",
    ]
    assert third.counts == Counts()
    assert not third.counts
    assert (recording.has_lines, recording.has_host_reads) == (True, True)
    assert events._records == []
    assert type(accounting.pending.ops) is list


@pytest.mark.usefixtures("recipes")
def test_counts_add_up():
    one = Counts(compilations=1, cache_hits=2, host_reads=3, host_copies=4)
    two = Counts(cpu_fallbacks=5, captures=6, replays=7)
    assert one + two == Counts(
        compilations=1,
        cache_hits=2,
        host_reads=3,
        host_copies=4,
        cpu_fallbacks=5,
        captures=6,
        replays=7,
    )


@pytest.mark.usefixtures("recipes")
@pytest.mark.parametrize("host_reads", [True, False], ids=["with-mode", "without"])
def test_on_a_card_counts_come_from_the_metrics(monkeypatch, host_reads):
    monkeypatch.setattr(loading, "is_emulated", lambda: False)
    recording = open_recording(host_reads=host_reads)
    try:
        for _ in range(3):
            (x() * 2).sum()
            mark_step()
        x().tolist()
        taken = recording.take()
        x().sum()
        x().cpu()
        last = recording.take()
    finally:
        recording.close()
    seen = int(host_reads)
    assert taken.counts == Counts(compilations=1, cache_hits=2, host_reads=seen, host_copies=seen)
    assert [e.kind for e in taken.events] == ["host_read", "d2h"] * seen + ["compile"]
    assert taken.events[-1].line == ""
    assert last.counts == Counts(host_copies=seen)
    assert (recording.has_lines, recording.has_host_reads) == (False, host_reads)
    assert events._records == []
    x().tolist()
    assert recording.take().events == ()


@pytest.mark.usefixtures("recipes")
def test_an_empty_cache_makes_counts_independent_of_what_came_before():
    (x() * 2).sum()
    mark_step()
    before = metrics.counters()
    recording = open_recording(empty_cache=True)
    (x() * 2).sum()
    mark_step()
    counts = recording.take().counts
    recording.close()
    assert counts == Counts(compilations=1)
    assert (metrics.counters() - before).compilations == 1
