"""Streams and events: which stream is current, what flushes, and the time between two events."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from lightning_gaudi import emulator

hpu = torch.hpu


@pytest.fixture(autouse=True)
def _on_the_default_stream() -> Iterator[None]:
    yield
    assert hpu.current_stream() == hpu.default_stream()


def flushes(action) -> list[str]:
    """Causes of the flushes that an action makes with an op pending."""
    hpu.synchronize()
    torch.ones(3, device="hpu") * 2
    with emulator.record() as events:
        action()
    return [event.cause for event in events if event.kind == "flush"]


def test_streams_differ_and_the_default_one_is_number_0():
    first, second = hpu.Stream(), hpu.Stream(device="hpu:0", priority=-1)
    assert first != second
    assert first == first
    assert len({first, second, first}) == 2
    assert (second.priority, second.device) == (-1, torch.device("hpu", 0))
    assert hpu.default_stream() == hpu.default_stream("hpu")
    assert hpu.default_stream().id() == hpu.default_stream().hpu_stream == 0
    assert hpu.get_stream_info(second) == (0, second.id())
    assert repr(hpu.default_stream()) == "<torch.hpu.Stream device=hpu:0 hpu_stream=0x0>"
    assert first != "stream"


def test_a_block_chooses_a_stream_and_puts_the_old_one_back():
    outer, inner = hpu.Stream(), hpu.Stream()
    with hpu.stream(outer):
        assert hpu.current_stream() == outer
        with pytest.raises(ZeroDivisionError), hpu.stream(inner):
            assert hpu.current_stream() == inner
            raise ZeroDivisionError
        assert hpu.current_stream() == outer
        with hpu.stream(None):
            assert hpu.current_stream() == outer
        with inner, outer:
            assert hpu.current_stream() == outer
        assert hpu.current_stream() == outer


def test_each_thread_has_a_current_stream():
    seen = []
    with hpu.stream(hpu.Stream()):
        thread = threading.Thread(target=lambda: seen.append(hpu.current_stream()))
        thread.start()
        thread.join()
    assert seen == [hpu.default_stream()]


def test_values_do_not_depend_on_the_stream():
    a = torch.ones(3, device="hpu")
    side = hpu.Stream()
    with hpu.stream(side):
        b = a * 2
    hpu.current_stream().wait_stream(side)
    b.record_stream(hpu.current_stream())
    assert (a + b).tolist() == [3.0, 3.0, 3.0]


def test_what_flushes_as_on_a_card():
    stream, event = hpu.Stream(), hpu.Event()
    assert flushes(stream.query) == ["Stream.query"]
    assert flushes(stream.synchronize) == ["Stream.synchronize"]
    assert flushes(event.record) == ["Event.record"]
    assert flushes(hpu.current_stream().record_event) == ["Event.record"]
    assert flushes(lambda: event.record(stream)) == []  # not the current stream
    assert flushes(lambda: hpu.set_stream(hpu.default_stream())) == []  # no other stream
    assert flushes(lambda: hpu.stream(stream).__enter__()) == ["set_stream"]
    assert flushes(lambda: hpu.set_stream(hpu.default_stream())) == ["set_stream"]
    assert flushes(event.wait) == []
    assert flushes(event.synchronize) == []
    assert flushes(event.query) == []


def test_set_stream_takes_none():
    hpu.set_stream(None)
    assert hpu.current_stream() == hpu.default_stream()


def test_an_event_that_was_never_recorded_is_done():
    event = hpu.Event()
    assert event.query() is True
    event.synchronize()
    event.wait()
    assert repr(event) == "<torch.hpu.Event uninitialized>"
    event.record()
    assert event.query() is True
    assert repr(event) == "<torch.hpu.Event recorded>"


def test_the_time_between_two_events_is_the_hosts():
    start, end = hpu.Event(enable_timing=True), hpu.Event(enable_timing=True)
    before = time.perf_counter()
    start.record()
    time.sleep(0.02)
    end.record()
    most = (time.perf_counter() - before) * 1e3
    assert 20 <= start.elapsed_time(end) <= most
    assert end.elapsed_time(start) == -start.elapsed_time(end)


def test_time_needs_timing_and_two_records():
    timed, untimed = hpu.Event(enable_timing=True), hpu.Event()
    with pytest.raises(RuntimeError, match="must be created with argument 'enable_timing=True'"):
        timed.elapsed_time(untimed)
    other = hpu.Event(enable_timing=True)
    timed.record()
    for pair in ((timed, other), (other, timed)):
        with pytest.raises(RuntimeError, match="Both events must be recorded before"):
            pair[0].elapsed_time(pair[1])


def test_streams_wait_for_events():
    stream = hpu.Stream()
    event = stream.record_event()
    assert isinstance(event, hpu.Event)
    assert stream.record_event(event) is event
    hpu.Stream().wait_event(event)


@pytest.mark.parametrize(
    "make",
    [
        lambda: hpu.Stream(device="hpu:1"),
        lambda: hpu.Stream(1),
        lambda: torch.Stream(device="hpu:1"),
        lambda: torch.Event(device="hpu:1"),
        lambda: torch.accelerator.set_device_index(1),
        lambda: torch.accelerator.device_index(1),
    ],
)
def test_a_second_card_does_not_exist(make):
    with pytest.raises(RuntimeError, match="device hpu:1 does not exist"):
        make()


def test_a_stream_is_on_an_hpu():
    with pytest.raises(ValueError, match="Expected a hpu device, but got: cpu"):
        hpu.Stream("cpu")


def test_pytorchs_own_classes_give_the_devices():
    for stream in (
        torch.Stream(device="hpu"),
        torch.Stream("hpu:0", priority=-1),
        torch.Stream(),
        torch.accelerator.current_stream(),
    ):
        assert type(stream) is hpu.Stream
        assert isinstance(stream, torch.Stream)
        assert stream.device == torch.device("hpu", 0)
        stream.synchronize()
    for event in (torch.Event("hpu"), torch.Event(device="hpu", enable_timing=True), torch.Event()):
        assert type(event) is hpu.Event
        assert isinstance(event, torch.Event)
        assert event.device.type == "hpu"
    assert issubclass(hpu.Stream, torch.Stream)
    assert issubclass(hpu.Event, torch.Event)
    assert not isinstance(torch.Event("cpu"), hpu.Event)


def test_pytorchs_accelerator_sets_streams():
    stream = torch.Stream(device="hpu")
    torch.accelerator.set_stream(stream)
    assert hpu.current_stream() == stream
    torch.accelerator.set_stream(hpu.default_stream())
    with torch.accelerator.device_index(0), torch.accelerator.device_index(None):
        pass
    torch.accelerator.set_device_index("hpu:0")
    dtypes = torch.accelerator.get_device_capability()["supported_dtypes"]
    assert {torch.float32, torch.bfloat16} <= dtypes


def test_record_stream_wants_a_stream():
    with pytest.raises(TypeError, match="argument 'stream' must be Stream, not int"):
        torch.ones(2, device="hpu").record_stream(3)
