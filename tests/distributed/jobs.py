"""Runs of several processes for tests: functions in ranks, and scripts under a launcher.

`run_ranks` forks each rank from a server that has imported everything and loaded no Gaudi software,
which takes a tenth of the time of a new Python. The ranks are told who they are by a launcher's
environment variables, as that launcher would tell them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parent.parent
MARK = "LIGHTNING_GAUDI_TEST_JOB"
_LIMIT_S = 150
# What a launcher around the tests, or a test before, may have left.
_FOREIGN = (
    "HLS_MODULE_ID",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "RANK",
    "WORLD_SIZE",
)
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["lightning", "lightning_gaudi", "training"])


@dataclass
class Outcome:
    """How a rank has ended: what its function returned, or the text of its exception."""

    value: Any = None
    error: str = ""
    exit_code: int | None = None
    seconds: float = 0.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def by_lightning(rank: int, size: int, port: int, **others: str) -> dict[str, str]:
    """What Lightning's launcher, or a user who starts each process himself, sets."""
    return {
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **others,
    }


def run_ranks(
    folder: Path,
    function: Callable[..., Any],
    *args: Any,
    variables: Sequence[dict[str, str]] | None = None,
    size: int = 2,
    limit_s: float = _LIMIT_S,
) -> list[Outcome]:
    """Call a function in several processes, one for each entry of `variables`."""
    if variables is None:
        port = free_port()
        variables = [by_lightning(rank, size, port) for rank in range(size)]
    started = time.monotonic()
    processes = []
    for rank, given in enumerate(variables):
        common = {"LIGHTNING_GAUDI_EMULATOR_DEVICES": str(size), MARK: str(folder)}
        job = (folder / f"outcome{rank}.pt", function, args, common | given)
        processes.append(_context.Process(target=_work, args=job, daemon=True))
        processes[-1].start()
    for process in processes:
        process.join(max(0.1, started + limit_s - time.monotonic()))
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    assert not late, f"ranks {late} had not ended after {limit_s} s"
    outcomes = []
    for rank, process in enumerate(processes):
        path = folder / f"outcome{rank}.pt"
        outcome = torch.load(path, weights_only=False) if path.exists() else Outcome()
        path.unlink(missing_ok=True)
        outcome.exit_code = process.exitcode
        outcomes.append(outcome)
    return outcomes


def values(outcomes: Sequence[Outcome]) -> list[Any]:
    """What each rank returned; an error in any of them fails the test."""
    errors = [outcome.error or f"exit code {outcome.exit_code}" for outcome in outcomes]
    assert all(outcome.exit_code == 0 for outcome in outcomes), "\n".join(errors)
    return [outcome.value for outcome in outcomes]


def _work(path: Path, function: Callable[..., Any], args: Any, variables: dict[str, str]) -> None:
    import warnings

    warnings.simplefilter("ignore")
    for name in _FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(variables)
    # A rank that takes itself for the first would have Lightning start this program once more.
    sys.modules["__main__"].__spec__ = None
    sys.argv = [os.devnull]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    outcome = Outcome()
    started = time.monotonic()
    try:
        outcome.value = function(*args)
    except BaseException as error:
        text = "".join(traceback.format_exception_only(type(error), error))
        outcome.error = text + ("" if str(error) in text else str(error))
    outcome.seconds = time.monotonic() - started
    partial = path.with_suffix(".part")
    torch.save(outcome, partial)
    partial.rename(path)
    sys.stdout.flush()
    os._exit(1 if outcome.error else 0)


def start_script(
    folder: Path, code: str, *args: str, launcher: Sequence[str] = (), **variables: str | None
) -> subprocess.Popen[str]:
    """Start Python on a script in a session of its own; None removes a variable."""
    script = folder / "script.py"
    script.write_text(code)
    return start_command(
        folder, [sys.executable, "-W", "ignore", *launcher, str(script), *args], **variables
    )


def start_command(
    folder: Path, command: Sequence[str], **variables: str | None
) -> subprocess.Popen[str]:
    """Start a command on two emulated cards in a session of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN} | {
        "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{TESTS}",
        "LIGHTNING_GAUDI_EMULATOR_DEVICES": "2",
        "OMP_NUM_THREADS": "1",
        MARK: str(folder),
    }
    for name, value in variables.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    return subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], limit_s: float = _LIMIT_S) -> tuple[int, str, str]:
    """Wait for a command: exit code, output, errors. If it is late its whole session ends."""
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"not ended after {limit_s} s\n{out}\n{err}") from None
    return process.returncode, out, err


def processes_of(folder: Path) -> list[int]:
    """The processes that a job in a folder has left."""
    wanted = f"{MARK}={folder}\0".encode()
    named = str(folder).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            is_ours = wanted in (entry / "environ").read_bytes() + b"\0"
            is_ours = is_ours or named in (entry / "cmdline").read_bytes()
            is_dead = ") Z" in (entry / "stat").read_text()
        except OSError:  # another user's, or it has just ended
            continue
        if is_ours and not is_dead:
            found.append(int(entry.name))
    return found
