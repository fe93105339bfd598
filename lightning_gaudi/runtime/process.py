"""Starting Python anew in an execution mode."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from lightning_gaudi.runtime import environment

_END_LIMIT_S = 20.0


def start_python(
    arguments: Sequence[str], *, lazy: bool, variables: Mapping[str, str] | None = None
) -> NoReturn:
    """Replace this process by Python with ``PT_HPU_LAZY_MODE`` set.

    The process keeps its id, so signals and the exit code pass by themselves.

    Args:
        arguments: What follows ``python`` on the command line.
        lazy: The mode: lazy, or eager.
        variables: Further environment variables to set.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    mode = {environment.LAZY_MODE: "1" if lazy else "0"}
    os.execve(
        sys.executable, [sys.executable, *arguments], os.environ | mode | dict(variables or {})
    )


def open_python(
    arguments: Sequence[str], *, lazy: bool, variables: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start another Python in a session of its own, with a pipe for all that it prints.

    Args:
        arguments: What follows ``python`` on the command line.
        lazy: The mode: lazy, or eager.
        variables: Further environment variables to set.
    """
    mode = {environment.LAZY_MODE: "1" if lazy else "0"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | mode | dict(variables or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def kill_python(process: subprocess.Popen[str]) -> None:
    """Kill a process that has a session of its own, with all that it has started there."""
    # Its session outlives it where it has left processes behind.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # One that hangs inside a driver does not end, whatever the signal; nobody shall wait for it.
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_LIMIT_S)
