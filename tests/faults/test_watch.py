"""What the hub makes of what it hears, and what a rank does then, without processes."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lightning_gaudi.faults import fault as faults
from lightning_gaudi.faults import hub as hubs
from lightning_gaudi.faults import member as members
from lightning_gaudi.faults import watch
from lightning_gaudi.faults.fault import Fault, add_to_message, reason_of_exit
from lightning_gaudi.faults.hub import Hub
from lightning_gaudi.faults.member import Member
from lightning_gaudi.faults.wire import Line

PIDS = {0: 100, 1: 101, 2: 102}


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "COLLECT_S", 0.2)
    monkeypatch.setattr(members, "RAISE_S", 0.5)


class Peer:
    """A rank that says what a test tells it to."""

    def __init__(self, hub: Hub, rank: int, token: str = "secret") -> None:
        self.line = Line(socket.create_connection(("localhost", hub.port), 10))
        self.line.send({"token": token, "rank": rank, "host": "machine", "pid": PIDS[rank]})

    def says(self, **message: Any) -> Peer:
        self.line.send(message)
        return self

    def hears(self, key: str) -> Any:
        """The first message with a key; fails after ten seconds."""
        end = time.monotonic() + 10
        while time.monotonic() < end:
            messages = self.line.receive()
            assert messages is not None, f"closed before {key!r} came"
            for message in messages:
                if key in message:
                    return message[key]
        raise AssertionError(f"no {key!r} came")


Start = Callable[..., tuple[Hub, list[Peer]]]


@pytest.fixture
def start() -> Iterator[Start]:
    opened: list[Peer] = []
    hubs_started: list[Hub] = []

    def start(
        ranks: int = 3, timeout_s: float = 30.0, codes: dict[int, int] | None = None
    ) -> tuple[Hub, list[Peer]]:
        hub = Hub(
            "secret",
            timeout_s=timeout_s,
            beat_s=0.1,
            exit_code=lambda host, pid: (codes or {}).get(pid) if host == "machine" else None,
        )
        hubs_started.append(hub)
        opened.extend(Peer(hub, rank).says(run=1) for rank in range(ranks))
        time.sleep(0.1)
        return hub, opened

    yield start
    for peer in opened:
        peer.line.close()
    for hub in hubs_started:
        hub.close()


def test_a_rank_that_dies_is_named_to_all(start: Start) -> None:
    _, (first, second, third) = start(codes={101: -9})
    second.line.close()
    for peer in (first, third):
        verdict = Fault(**peer.hears("verdict"))
        assert str(verdict) == (
            "rank 1 (machine, process 101) died: it was killed by signal 9 (SIGKILL)."
        )


def test_a_death_comes_before_errors_that_follow_from_it(start: Start) -> None:
    _, (first, second, third) = start()
    first.says(failed="RuntimeError: Connection closed by peer")
    third.says(failed="RuntimeError: Connection closed by peer")
    second.line.close()
    assert first.hears("verdict")["rank"] == 1


def test_of_several_errors_the_first_is_the_cause(start: Start) -> None:
    _, (first, second, third) = start()
    third.says(failed="ValueError: a bad row")
    time.sleep(0.05)
    first.says(failed="RuntimeError: Connection closed by peer")
    third.line.close()  # it has said why: no death of its own
    verdict = second.hears("verdict")
    assert (verdict["rank"], verdict["why"]) == (2, "failed: ValueError: a bad row")


def test_a_rank_that_has_done_its_part_may_go(start: Start) -> None:
    hub, (first, second, _) = start()
    second.says(done=1)
    second.line.close()
    time.sleep(0.6)
    assert hub.verdict is None
    # Unless others then begin a run that needs it.
    first.says(run=2)
    assert "has left: its script ended" in first.hears("verdict")["why"]


def test_a_rank_that_fails_after_its_part_is_a_fault(start: Start) -> None:
    _, (first, second, _) = start(codes={101: 3})
    second.says(done=1)
    second.line.close()
    assert first.hears("verdict")["why"] == "died: it ended with exit code 3"


def test_silence_is_a_fault_after_the_timeout(start: Start) -> None:
    _, (first, _, third) = start(timeout_s=1.0)
    begin = time.monotonic()
    hub_says: list[Any] = []

    def listen() -> None:
        hub_says.append(first.hears("verdict"))

    listener = threading.Thread(target=listen)
    listener.start()
    while listener.is_alive() and time.monotonic() - begin < 10:
        first.says(progress=3)
        third.says(progress=3)
        time.sleep(0.1)
    assert hub_says[0]["rank"] == 1
    assert "is silent since" in hub_says[0]["why"]
    assert time.monotonic() - begin > 0.9


def test_a_rank_that_is_behind_while_all_wait(start: Start) -> None:
    hub, peers = start(timeout_s=1.0)
    end = time.monotonic() + 10
    while hub.verdict is None and time.monotonic() < end:
        for peer, progress in zip(peers, (6, 6, 5), strict=True):
            peer.says(progress=progress)
        time.sleep(0.1)
    assert hub.verdict is not None
    assert hub.verdict.rank == 2
    assert "at backward pass 5, while another is at 6 and does not go on" in hub.verdict.why


def test_nobody_is_behind_where_all_take_long(start: Start) -> None:
    hub, peers = start(timeout_s=0.5)
    for _ in range(15):
        for peer in peers:
            peer.says(progress=6)
        time.sleep(0.1)
    assert hub.verdict is None


def test_nobody_is_behind_while_others_go_on(start: Start) -> None:
    """In a long validation, say, after one rank has skipped a backward pass."""
    hub, peers = start(timeout_s=0.5)
    for steps in range(15):
        for peer, progress in zip(peers, (6, 6, 5), strict=True):
            peer.says(progress=progress, steps=steps)
        time.sleep(0.1)
    assert hub.verdict is None


def test_who_is_silent_or_behind_is_told_with_an_error(start: Start) -> None:
    _, (first, second, third) = start()
    second.says(progress=4)
    for _ in range(8):
        first.says(progress=5)
        third.says(progress=4)
        time.sleep(0.1)
    first.says(failed="RuntimeError: timed out")
    besides = first.hears("verdict")["besides"]
    assert "rank 1 (machine, process 101) is silent since" in besides
    assert "rank 2 (machine, process 102) is at backward pass 4, while another is at 5" in besides


def test_a_stranger_is_not_listened_to(start: Start) -> None:
    hub, (first, *_) = start()
    stranger = Peer(hub, 1, token="guessed").says(failed="nothing")
    assert stranger.line.receive() is None
    stranger.line.close()
    time.sleep(0.4)
    assert hub.verdict is None
    assert first.hears("beat") == 0


# --- a rank's own end -----------------------------------------------------------------------------


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(members.faulthandler, "dump_traceback", lambda *_, **__: None)
    return codes


_joined: list[Member] = []


@pytest.fixture(autouse=True)
def _members_leave() -> Iterator[None]:
    yield
    for member in _joined:
        member.close()
    _joined.clear()


def join(hub: Hub, rank: int = 1, timeout_s: float = 30.0) -> tuple[Member, list[str]]:
    finished: list[str] = []
    member = Member(
        Line(socket.create_connection(("localhost", hub.port), 10)),
        rank=rank,
        token="secret",
        main_host="machine",
        main_pid=100,
        timeout_s=timeout_s,
        beat_s=0.1,
        before_exit=lambda: finished.append("writes"),
    )
    _joined.append(member)
    return member, finished


def wait(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_a_rank_that_raises_is_not_ended(start: Start, exits: list[int]) -> None:
    hub, _ = start(1)
    member, finished = join(hub)
    member.begin()
    error = RuntimeError("Connection closed by peer")
    assert member.fail(error) == ""  # it is this rank's own fault
    member.end()
    time.sleep(0.6)
    assert exits == finished == []


def test_a_rank_that_does_not_raise_is_ended(
    start: Start, exits: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    hub, (first,) = start(1)
    member, finished = join(hub)
    member.begin()
    first.says(failed="ValueError: a bad row")
    wait(lambda: exits)
    assert exits == [1]
    assert finished == ["writes"]
    text = capsys.readouterr().err
    assert "[rank 1] lightning_gaudi: the run has failed, for rank 0 (machine, process 100)" in text
    assert "failed: ValueError: a bad row. This process does not end by itself" in text


def test_another_ranks_fault_is_added_to_the_error(start: Start, exits: list[int]) -> None:
    hub, (first,) = start(1)
    member, _ = join(hub)
    member.begin()
    first.says(failed="ValueError: a bad row")
    wait(lambda: member.verdict)
    error = RuntimeError("Connection closed by peer")
    text = member.fail(error)
    member.end()
    assert text == (
        "The run has ended because rank 0 (machine, process 100) failed: ValueError: a bad row."
    )
    add_to_message(error, text)
    add_to_message(error, text)
    assert str(error) == f"Connection closed by peer\n{text}"


def test_an_error_that_all_raise_is_nobodys(start: Start, exits: list[int]) -> None:
    hub, (first,) = start(1)
    member, _ = join(hub)
    member.begin()
    first.says(failed="ValueError: a bad setting")
    wait(lambda: member.verdict)
    assert member.fail(ValueError("a bad setting")) == ""
    member.end()


@pytest.mark.parametrize("is_done", [True, False])
def test_the_main_rank_goes(is_done: bool, exits: list[int]) -> None:
    server = socket.create_server(("localhost", 0))
    hub: Any = type("FakeHub", (), {"port": server.getsockname()[1]})
    member, _ = join(hub)
    main = Line(server.accept()[0])
    member.begin()
    if is_done:
        main.send({"done": 1})
        time.sleep(0.2)
    main.close()
    server.close()
    if is_done:
        time.sleep(0.6)
        assert exits == []
    else:
        wait(lambda: exits)
        assert member.verdict is not None
        assert "rank 0 (machine, process 100) died: its connection" in str(member.verdict)


def test_the_main_rank_is_silent(exits: list[int]) -> None:
    server = socket.create_server(("localhost", 0))
    hub: Any = type("FakeHub", (), {"port": server.getsockname()[1]})
    member, _ = join(hub, timeout_s=0.5)
    connection, _ = server.accept()
    member.begin()
    wait(lambda: exits)
    assert "rank 0 (machine, process 100) is silent since" in str(member.verdict)
    connection.close()
    server.close()


def test_words_for_how_a_process_has_ended() -> None:
    assert reason_of_exit(-11) == "it was killed by signal 11 (SIGSEGV)"
    assert reason_of_exit(-99) == "it was killed by signal 99"
    assert reason_of_exit(2) == "it ended with exit code 2"
    assert "killed, perhaps for memory, or its machine is lost" in reason_of_exit(None)
    assert len(faults.reason_of_exception(ValueError("x" * 10_000))) == 2000


def test_an_error_of_another_kind_gets_a_note() -> None:
    error = KeyError("name")
    add_to_message(error, "")
    add_to_message(error, "whose fault it is")
    assert error.args == ("name",)
    if hasattr(error, "add_note"):
        assert error.__notes__ == ["whose fault it is"]


def test_where_rank_0_cannot_be_reached_there_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("localhost", 0)) as probe:
        port = probe.getsockname()[1]
    about = {"port": port, "token": "secret", "host": "machine", "pid": 1}
    monkeypatch.setattr(watch, "_current", None)
    with pytest.warns(UserWarning, match=rf"rank 1 cannot reach rank 0 at localhost:{port}"):
        found = watch.watch_ranks(
            rank=1,
            address="localhost",
            timeout_s=1.0,
            gather=lambda _: [about],
            children=[],
            before_exit=lambda: None,
        )
    assert found is None
