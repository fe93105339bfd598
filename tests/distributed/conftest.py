"""No test of several processes may leave one behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed.jobs import processes_of

_GRACE_S = 10


@pytest.fixture(autouse=True)
def _no_process_left(tmp_path: Path) -> Iterator[None]:
    yield
    end = time.monotonic() + _GRACE_S
    while (left := processes_of(tmp_path)) and time.monotonic() < end:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"processes were left running: {left}"
