"""One thread that writes, in order, what the training loop hands over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

_writes = 0
_changed = threading.Condition()


@contextmanager
def while_writing() -> Iterator[None]:
    """Tell `wait_for_writes` that a checkpoint is being written within the block."""
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    global _writes
    with _changed:
        _writes += change
        _changed.notify_all()


def wait_for_writes(timeout_s: float) -> bool:
    """Wait until this process writes no checkpoint; for who must end the process.

    Args:
        timeout_s: How long to wait at most.

    Returns:
        Whether none is being written any more.
    """
    deadline = time.monotonic() + timeout_s
    with _changed:
        while _writes and (left := deadline - time.monotonic()) > 0:
            _changed.wait(left)
        return not _writes


class Background:
    """Runs a write at a time, and what is to follow it only if it succeeded.

    An error is kept until somebody asks: `finish` raises it, `settle` returns it.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._write: Future[None] | None = None
        self._followers: list[Future[None]] = []

    def start(self, write: Callable[[], None]) -> None:
        """Run a write in the thread; the one before must be finished."""
        assert self._write is None
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        _count(1)
        self._write = self._executor.submit(write)
        self._write.add_done_callback(lambda _: _count(-1))

    def then(self, action: Callable[[], None]) -> None:
        """Run an action after the write, unless that fails; at once where there is none."""
        write = self._write
        if write is None or self._executor is None:
            action()
            return
        self._followers.append(self._executor.submit(_after, write, action))

    def finish(self) -> None:
        """Wait for the write and what follows it; raises the error of either."""
        error = self.settle()
        if error is not None:
            raise error

    def settle(self) -> BaseException | None:
        """Wait for the write and what follows it; the first error of either, or None."""
        errors: list[BaseException] = []
        try:
            for future in ([self._write] if self._write else []) + self._followers:
                error = future.exception()
                if error is not None:
                    errors.append(error)
        finally:
            self._write, self._followers = None, []
            if self._executor is not None:
                self._executor.shutdown()
                self._executor = None
        return errors[0] if errors else None


def _after(write: Future[None], action: Callable[[], None]) -> None:
    if write.exception() is None:
        action()
