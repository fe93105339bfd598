"""`watch_ranks`: joins this process to the watch of a run's ranks."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from lightning_gaudi.faults.hub import Hub
from lightning_gaudi.faults.member import Member
from lightning_gaudi.faults.wire import Line

_CONNECT_S = 30.0
_USUAL_TIMEOUT_S = 1800.0
_CHILDREN_S = 10.0

_current: FaultWatch | None = None


class FaultWatch:
    """This process's part in the watch: the rank's own end, and the hub in rank 0.

    Args:
        member: The rank's own end.
        hub: The hub, in rank 0.
        children: Ranks that this process has started.
    """

    def __init__(
        self, member: Member, hub: Hub | None, children: Sequence[subprocess.Popen[Any]]
    ) -> None:
        self.member = member
        self._hub = hub
        self._children = children

    def close_inherited(self) -> None:
        """In a forked process: leave the connections to the one that it is forked from."""
        self.member.close_inherited()
        if self._hub is not None:
            self._hub.close_inherited()

    def close(self) -> None:
        """Take no more part; after a fault, when a new watch is to begin."""
        self.member.close()
        if self._hub is not None:
            self._hub.close()

    def end_children(self) -> None:
        """After a fault: end the ranks that this process has started, and that do not end."""
        if self.member.verdict is None:
            return
        deadline = time.monotonic() + _CHILDREN_S
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, deadline - time.monotonic()))
        for child in self._children:
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_CHILDREN_S)


def watch_ranks(
    *,
    rank: int,
    address: str,
    timeout_s: float | None,
    gather: Callable[[Any], list[Any]],
    children: Sequence[Any],
    before_exit: Callable[[], object],
) -> FaultWatch | None:
    """Join the watch; to be called in all ranks, after they have found each other.

    A process joins once; later runs go on with the same watch, until one has failed.

    Args:
        rank: This process's rank.
        address: The machine of rank 0.
        timeout_s: How long a rank may be silent, or behind while the others wait for it; half an
            hour where it is None.
        gather: Gives what each rank passes to it, by rank.
        children: Processes of ranks that this one has started; what is no ``Popen`` is passed over.
        before_exit: Called before this process is ended because the run has failed.

    Returns:
        The watch; None, with a warning, where rank 0 cannot be reached.
    """
    global _current
    if _current is not None and _current.member.verdict is None:
        return _current
    is_first = _current is None
    if _current is not None:
        _current.close()
        _current = None
    timeout_s = timeout_s or _USUAL_TIMEOUT_S
    beat_s = min(5.0, max(0.2, timeout_s / 10))
    popens = [child for child in children if isinstance(child, subprocess.Popen)]
    hub, about = None, None
    if rank == 0:
        token = secrets.token_hex(16)
        hub = Hub(
            token, timeout_s=timeout_s, beat_s=beat_s, exit_code=lambda *who: _code(popens, *who)
        )
        about = {"port": hub.port, "token": token, "host": socket.gethostname(), "pid": os.getpid()}
    about = gather(about)[0]
    assert about is not None
    where = ("localhost" if rank == 0 else address, about["port"])
    try:
        line = Line(socket.create_connection(where, _CONNECT_S))
    except OSError as error:
        warnings.warn(
            f"rank {rank} cannot reach rank 0 at {where[0]}:{where[1]} ({error}), so that the "
            "others will not know why if it is lost. Is there a firewall between the machines?",
            stacklevel=2,
        )
        return None
    member = Member(
        line,
        rank=rank,
        token=about["token"],
        main_host=about["host"],
        main_pid=about["pid"],
        timeout_s=timeout_s,
        beat_s=beat_s,
        before_exit=lambda: _before_exit(before_exit),
    )
    if is_first:
        os.register_at_fork(after_in_child=_leave)
        atexit.register(_end_children)
    _current = FaultWatch(member, hub, popens)
    _disarm_observer()
    return _current


def _code(children: Sequence[subprocess.Popen[Any]], host: str, pid: int) -> int | None:
    if host != socket.gethostname():
        return None
    return next((child.poll() for child in children if child.pid == pid), None)


def _disarm_observer() -> None:
    """Keep Lightning's own observer from killing this process before it can say why.

    It looks at the started processes every five seconds, and kills all and itself, with a line that
    is not shown (lightning 2.6.6, ``fabric/strategies/launchers/subprocess_script.py``). The hub
    knows sooner. The name is private; where it is another the observer stays, and may come first.
    """
    for thread in threading.enumerate():
        if thread.name == "child-process-observer" and hasattr(thread, "_child_processes"):
            thread._child_processes = []


def _leave() -> None:
    global _current
    if _current is not None:
        _current.close_inherited()
        _current = None


def _end_children() -> None:
    if _current is not None:
        _current.end_children()


def _before_exit(others: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):
        others()
    with contextlib.suppress(Exception):
        _end_children()
