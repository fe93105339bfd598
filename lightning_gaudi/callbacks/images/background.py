"""Runs jobs one after the other in a thread, so that the caller goes on meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

Job = Callable[[], None]


class BackgroundWriter:
    """A thread with a bounded queue of jobs.

    A job that fails is the last one to run: those after it are passed over, so that nobody waits
    for a full queue, and its error is raised by the next `submit` or by `close`.

    Args:
        max_pending: How many jobs may wait; `submit` waits while there are as many.
    """

    def __init__(self, max_pending: int) -> None:
        self._jobs: queue.Queue[Job | None] = queue.Queue(max_pending)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, job: Job) -> None:
        """Run a job later. The thread starts with the first one.

        Raises:
            BaseException: What an earlier job raised.
        """
        if self._error is not None:
            self.close()
        if self._thread is None:
            # A daemon, so that a process whose caller forgot `close` still ends.
            self._thread = threading.Thread(target=self._run, name="ImageWriter", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def close(self) -> None:
        """Wait for all jobs and end the thread. A further `submit` starts another one.

        Raises:
            BaseException: What a job raised; once.
        """
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is None:
                try:
                    job()
                except BaseException as error:  # for the caller's thread
                    self._error = error
