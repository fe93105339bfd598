"""Rank 0's end of the watch: hears from all ranks, and decides whose fault ends the run."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lightning_gaudi.faults.fault import Fault, reason_of_exit, silence
from lightning_gaudi.faults.wire import Line, Message

# One rank's end makes the others' collectives fail; which of them is heard of first is chance.
COLLECT_S = 1.0
_FEW_BEATS = 4


@dataclass(kw_only=True, eq=False)
class _Member:
    """A rank, as the hub knows it.

    Attributes:
        run: The last run that it has begun, counted from 1.
        done: The last run that it has ended.
        progress: Backward passes in this run.
        steps: Those, and steps of an evaluation.
        heard: When it last said something.
        moved: When the number of its steps last changed.
    """

    line: Line
    rank: int
    host: str
    pid: int
    run: int = 0
    done: int = 0
    progress: int = 0
    steps: int = 0
    heard: float = 0.0
    moved: float = 0.0
    has_failed: bool = False
    is_gone: bool = False

    @property
    def is_running(self) -> bool:
        return self.run > self.done

    def fault(self, why: str, besides: str = "") -> Fault:
        return Fault(rank=self.rank, host=self.host, pid=self.pid, why=why, besides=besides)


class Hub:
    """Listens to the ranks in a thread of its own.

    Args:
        token: What a rank must know to be listened to.
        timeout_s: How long a rank may be silent, or behind while the others wait for it.
        beat_s: How often ranks say that they are there.
        exit_code: The exit code of a process of this machine; None where it is not known.
    """

    def __init__(
        self,
        token: str,
        *,
        timeout_s: float,
        beat_s: float,
        exit_code: Callable[[str, int], int | None],
    ) -> None:
        self._token = token
        self._timeout_s = timeout_s
        self._beat_s = beat_s
        self._exit_code = exit_code
        self._members: dict[int, _Member] = {}
        self._dead: list[_Member] = []
        self._failed: list[Fault] = []
        self._first_fault: float | None = None
        self.verdict: Fault | None = None
        self._selector = selectors.DefaultSelector()
        if socket.has_dualstack_ipv6():
            self._server = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True
            )
        else:
            self._server = socket.create_server(("", 0))
        self.port: int = self._server.getsockname()[1]
        self._selector.register(self._server, selectors.EVENT_READ)
        self._is_open = True
        self._thread = threading.Thread(target=self._listen, daemon=True, name="fault-hub")
        self._thread.start()

    def close(self) -> None:
        """Hear no more; every rank then takes this one for gone."""
        self._is_open = False
        self._thread.join()
        self.close_inherited()
        self._selector.close()

    def close_inherited(self) -> None:
        """Close what a forked process has no business with; it would keep connections open."""
        self._server.close()
        for member in self._members.values():
            member.line.close()

    # --- the thread -----------------------------------------------------------------------------

    def _listen(self) -> None:
        last = last_beat = time.monotonic()
        while self.verdict is None and self._is_open:
            wait = self._beat_s if self._first_fault is None else COLLECT_S / 4
            for key, _ in self._selector.select(wait):
                if key.fileobj is self._server:
                    self._accept()
                else:
                    self._hear(key.data)
            now = time.monotonic()
            if now - last > _FEW_BEATS * self._beat_s:
                # This process was the one that stood still; nobody could be heard.
                for member in self._members.values():
                    member.heard = member.moved = now
            last = now
            if now - last_beat >= self._beat_s:
                last_beat = now
                self._tell({"beat": 0})
            self._look_for_silence(now)
            if self._first_fault is not None and now - self._first_fault >= COLLECT_S:
                self._decide(now)

    def _accept(self) -> None:
        connection, _ = self._server.accept()
        line = Line(connection)
        self._selector.register(connection, selectors.EVENT_READ, line)

    def _hear(self, line: Line) -> None:
        messages = line.receive()
        member = next((m for m in self._members.values() if m.line is line), None)
        if messages is None:
            self._selector.unregister(line.socket)
            line.close()
            if member is not None:
                self._lose(member)
            return
        for message in messages:
            if member is None:
                member = self._greet(line, message)
                if member is None:
                    return
            self._note(member, message)

    def _greet(self, line: Line, message: Message) -> _Member | None:
        if message.get("token") != self._token:
            self._selector.unregister(line.socket)
            line.close()
            return None
        member = _Member(line=line, rank=message["rank"], host=message["host"], pid=message["pid"])
        self._members[member.rank] = member
        return member

    def _note(self, member: _Member, message: Message) -> None:
        now = time.monotonic()
        member.heard = now
        member.progress = message.get("progress", member.progress)
        steps = message.get("steps", member.steps)
        if steps != member.steps:
            member.steps, member.moved = steps, now
        if "run" in message:
            member.run, member.moved = message["run"], now
            for other in self._members.values():
                if other.is_gone and other.run < member.run:
                    self._fail(other.fault("has left: its script ended before this run began"))
        if "done" in message:
            member.done = message["done"]
            if member.rank == 0:
                self._tell({"done": member.done})
        if "failed" in message:
            member.has_failed = True
            self._fail(member.fault(f"failed: {message['failed']}"))

    def _tell(self, message: Message) -> None:
        for member in self._members.values():
            if not member.is_gone:
                member.line.send(message)

    # --- faults ---------------------------------------------------------------------------------

    def _lose(self, member: _Member) -> None:
        """A connection has ended."""
        member.is_gone = True
        if not member.has_failed:
            self._dead.append(member)
            if member.is_running or self._exit_code(member.host, member.pid) != 0:
                self._first_fault = self._first_fault or time.monotonic()

    def _fail(self, fault: Fault) -> None:
        self._failed.append(fault)
        self._first_fault = self._first_fault or time.monotonic()

    def _look_for_silence(self, now: float) -> None:
        running = [m for m in self._members.values() if m.is_running and not m.is_gone]
        for member in running:
            if now - member.heard > self._timeout_s:
                self._fail(member.fault(f"is {silence(now - member.heard)}"))
        foremost = max((m.progress for m in running), default=0)
        stands_still = all(now - m.moved > self._timeout_s for m in running)
        for member in running:
            if stands_still and member.progress < foremost:
                self._fail(member.fault(f"is {_distance(member, foremost)} and does not go on"))

    def _decide(self, now: float) -> None:
        """Pick the fault that the others follow from, and tell everybody."""
        fault: Fault | None = None
        for member in self._dead:
            code = self._exit_code(member.host, member.pid)
            if member.is_running or code not in (0, None):
                fault = member.fault(f"died: {reason_of_exit(code)}")
                break
        fault = fault or next(iter(self._failed), None)
        if fault is None:  # it had nothing more to do, and has ended in peace
            self._first_fault, self._dead = None, []
            return
        self.verdict = Fault(
            rank=fault.rank,
            host=fault.host,
            pid=fault.pid,
            why=fault.why,
            besides=self._suspicions(now, fault.rank),
        )
        self._tell({"verdict": self.verdict.as_message()})

    def _suspicions(self, now: float, blamed: int) -> str:
        """Of the ranks that are not to blame, so far, those that are silent or behind."""
        others = [
            m for m in self._members.values() if m.is_running and not m.is_gone and m.rank != blamed
        ]
        foremost = max((m.progress for m in self._members.values()), default=0)
        found = []
        for member in others:
            who = f"rank {member.rank} ({member.host}, process {member.pid}) is"
            if now - member.heard > _FEW_BEATS * self._beat_s:
                found.append(f"{who} {silence(now - member.heard)}")
            elif member.progress < foremost:
                found.append(f"{who} {_distance(member, foremost)}")
        return "; ".join(found)


def _distance(member: _Member, foremost: int) -> str:
    return f"at backward pass {member.progress}, while another is at {foremost}"
