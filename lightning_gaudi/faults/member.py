"""A rank's end of the watch: says that it is there, hears whose fault ends the run, and ends."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable

from lightning_gaudi.faults.fault import Fault, reason_of_exception, reason_of_exit, silence
from lightning_gaudi.faults.wire import Line

# How long the main thread may take to raise, once the run has failed, and then to tidy up.
RAISE_S = 5.0
TIDY_S = 60.0
FEW_BEATS = 4
_VERDICT_S = 3.0


class Member:
    """One rank among the others; its thread ends the process if the run fails and it does not.

    Args:
        line: The connection to the hub.
        rank: This process's rank.
        token: What the hub asks for.
        main_host: The machine of rank 0.
        main_pid: Its process there.
        timeout_s: How long rank 0 may be silent.
        beat_s: How often to say that this rank is there.
        before_exit: Called before the process is ended, to finish what must not be cut off.

    Attributes:
        progress: Backward passes in this run, as the strategy counts them.
        steps: Those, and steps of an evaluation.
    """

    def __init__(
        self,
        line: Line,
        *,
        rank: int,
        token: str,
        main_host: str,
        main_pid: int,
        timeout_s: float,
        beat_s: float,
        before_exit: Callable[[], object],
    ) -> None:
        self.progress = self.steps = 0
        self.verdict: Fault | None = None
        self._line = line
        self._rank = rank
        self._main = (main_host, main_pid)
        self._timeout_s = timeout_s
        self._beat_s = beat_s
        self._before_exit = before_exit
        self._run = 0
        self._is_running = False
        self._main_done = 0
        self._has_verdict = threading.Event()
        self._has_raised = threading.Event()
        self._has_ended = threading.Event()
        self._told: BaseException | None = None
        line.send({"token": token, "rank": rank, "host": socket.gethostname(), "pid": os.getpid()})
        self._is_open = True
        self._thread = threading.Thread(target=self._listen, daemon=True, name="fault-watch")
        self._thread.start()

    def begin(self) -> None:
        """A run begins, which all ranks take part in."""
        self._run += 1
        self.progress = self.steps = 0
        self._is_running = True
        self._has_raised.clear()
        self._has_ended.clear()
        self._line.send({"run": self._run, "progress": 0, "steps": 0})

    def fail(self, error: BaseException) -> str:
        """The run has failed here; tell the others, and find out whether it is this rank's fault.

        Args:
            error: What was raised.

        Returns:
            What to add to the error: whose fault it is, or what else is known. Empty where there is
            nothing to say.
        """
        reason = reason_of_exception(error)
        if self._told is not error:
            self._told = error
            self._has_raised.set()
            self._line.send({"failed": reason})
            self._has_verdict.wait(_VERDICT_S)
        verdict = self.verdict
        if verdict is None or (verdict.rank == self._rank and not verdict.besides):
            return ""
        if verdict.rank != self._rank and verdict.why == f"failed: {reason}":
            return ""  # all ranks have raised the same
        if verdict.rank == self._rank:
            return f"Besides, {verdict.besides}."
        return f"The run has ended because {verdict}"

    def end(self) -> None:
        """The run has ended here, well or not."""
        if self._is_running:
            self._is_running = False
            self._has_ended.set()
            self._line.send({"done": self._run})

    def close(self) -> None:
        """Take no more part in the watch."""
        self._is_open = False
        self._thread.join()
        self._line.close()

    def close_inherited(self) -> None:
        """Close what a forked process has no business with."""
        self._line.close()

    # --- the thread -----------------------------------------------------------------------------

    def _listen(self) -> None:
        heard = last = last_beat = time.monotonic()
        selector = selectors.DefaultSelector()
        selector.register(self._line.socket, selectors.EVENT_READ)
        while self.verdict is None and self._is_open:
            ready = selector.select(self._beat_s)
            now = time.monotonic()
            if now - last > FEW_BEATS * self._beat_s:  # it was this process that stood still
                heard = now
            last = now
            messages = self._line.receive() if ready else []
            if messages is None:
                if not self._is_running or self._main_done >= self._run:
                    break  # rank 0 has ended in peace
                self._judge(self._main_fault(f"died: {reason_of_exit(None)}"))
                break
            for message in messages:
                heard = now
                self._main_done = message.get("done", self._main_done)
                if "verdict" in message:
                    self._judge(Fault(**message["verdict"]))
            if self._is_running and now - heard > self._timeout_s:
                self._judge(self._main_fault(f"is {silence(now - heard)}"))
            if now - last_beat >= self._beat_s:
                last_beat = now
                self._line.send({"progress": self.progress, "steps": self.steps})
        selector.close()
        if self.verdict is not None:
            self._end_process()

    def _main_fault(self, why: str) -> Fault:
        host, pid = self._main
        return Fault(rank=0, host=host, pid=pid, why=why)

    def _judge(self, fault: Fault) -> None:
        self.verdict = fault
        self._has_verdict.set()

    def _end_process(self) -> None:
        """End the process, unless its main thread does so or has nothing to do with the run."""
        assert self.verdict is not None
        if self._rank == 0 and self.verdict.rank != 0:
            self._say(f"the run has failed, for {self.verdict}")
        if self._is_running and self._has_raised.wait(RAISE_S) and self._has_ended.wait(TIDY_S):
            return  # the error is on its way to whoever called
        if not self._is_running and self._has_ended.is_set() and self._has_raised.is_set():
            return
        self._say(
            f"the run has failed, for {self.verdict} This process does not end by itself, so it is "
            "ended. Its threads were here:"
        )
        with contextlib.suppress(Exception):
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        self._before_exit()
        os._exit(1)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            print(f"[rank {self._rank}] lightning_gaudi: {text}", file=sys.stderr, flush=True)
