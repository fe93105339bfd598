"""Runs checks in other processes, so that one that hangs or aborts takes none with it.

This process imports no torch and touches no card. A worker runs check after check; where one fails,
aborts or exceeds its time, the worker is killed and a fresh one goes on with the next.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lightning_gaudi.runtime.process import kill_python, open_python
from lightning_gaudi.selftest.catalogue import CATALOGUE, Check
from lightning_gaudi.selftest.worker import MARK

Result = dict[str, Any]
"""``name``, ``title``, ``status`` (passed, failed, skipped, answered), ``seconds``, ``figures``,
and ``reason``, ``traceback``, ``answer``, ``output`` where there are any."""

_START_LIMIT_S = 180.0
_VARIABLES = {"PT_HPU_ENABLE_CACHE_METRICS": "1"}
_MOST_OUTPUT = 4000
_READER_LIMIT_S = 5.0


def choose(*, mode: str, quick: bool, names: Iterable[str] = ()) -> list[tuple[Check, str]]:
    """The checks to run, each with the reason to skip it, or an empty text.

    Args:
        mode: ``"lazy"`` or ``"eager"``.
        quick: Whether to run the quick ones only.
        names: If any, those only.
    """
    wanted = set(names)
    chosen = []
    for check in CATALOGUE:
        if (wanted and check.name not in wanted) or (quick and not check.is_quick):
            continue
        reason = "" if mode in check.modes else f"there are no HPU graphs in {mode} mode"
        chosen.append((check, reason))
    return chosen


def run_checks(
    checks: Sequence[tuple[Check, str]],
    *,
    mode: str,
    isolates: bool,
    limit_factor: float = 1.0,
    on_result: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Run checks.

    Args:
        checks: From `choose`.
        mode: ``"lazy"`` or ``"eager"``.
        isolates: Whether checks that may abort get a process each.
        limit_factor: What each check's time limit is multiplied by.
        on_result: Called with each result.
    """
    results: list[Result] = []

    def add(check: Check, result: Result) -> None:
        whole = {"name": check.name, "title": check.title, **result}
        results.append(whole)
        on_result(whole)

    waiting: list[Check] = []
    for check, reason in checks:
        if reason:
            add(check, {"status": "skipped", "reason": reason, "seconds": 0.0, "figures": {}})
        else:
            waiting.append(check)
    while waiting:
        is_alone = isolates and waiting[0].may_abort
        batch = waiting[:1] if is_alone else _together(waiting, isolates=isolates)
        done = _run_batch(batch, mode, limit_factor, add)
        waiting = waiting[done:]
    order = {check.name: number for number, (check, _) in enumerate(checks)}
    return sorted(results, key=lambda result: order[result["name"]])


def _together(waiting: Sequence[Check], *, isolates: bool) -> list[Check]:
    """The checks from the first on that may share a process."""
    batch: list[Check] = []
    for check in waiting:
        if isolates and check.may_abort:
            break
        batch.append(check)
    return batch


def _run_batch(
    batch: Sequence[Check],
    mode: str,
    limit_factor: float,
    add: Callable[[Check, Result], None],
) -> int:
    """Run checks in one worker until one of them does not pass; how many have a result."""
    process = open_python(
        ["-m", "lightning_gaudi.selftest.worker", *(check.name for check in batch)],
        lazy=mode == "lazy",
        variables=_VARIABLES,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    output: list[str] = []
    try:
        for number, check in enumerate(batch):
            # The first one's limit includes the start of Python and of the software.
            limit_s = check.limit_s * limit_factor + (0 if number else _START_LIMIT_S)
            begin = time.perf_counter()
            result = _await(lines, check, begin + limit_s, output)
            if result is None:
                seconds = round(time.perf_counter() - begin, 3)
                add(check, _lost(process, check, seconds, limit_s, output))
                return number + 1
            add(check, result)
            if result["status"] == "failed":
                return number + 1
        return len(batch)
    finally:
        kill_python(process)
        reader.join(_READER_LIMIT_S)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout as stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _await(
    lines: queue.Queue[str | None], check: Check, deadline: float, output: list[str]
) -> Result | None:
    """A check's result; None where the worker ended, or the time did."""
    while (left := deadline - time.perf_counter()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            return None
        if line is None:
            return None
        if not line.startswith(MARK):
            if line.strip():
                output.append(line.rstrip())
            continue
        message = json.loads(line.removeprefix(MARK))
        if "begin" in message:
            output.clear()
        elif message["end"]["name"] == check.name:
            result: Result = message["end"]
            if result["status"] == "failed":
                result["output"] = "\n".join(output)[-_MOST_OUTPUT:]
            return result
    return None


def _lost(
    process: subprocess.Popen[str],
    check: Check,
    seconds: float,
    limit_s: float,
    output: Sequence[str],
) -> Result:
    """The result of a check whose worker ended, or took too long."""
    try:
        code = process.wait(timeout=2 if seconds < limit_s else 0)
    except subprocess.TimeoutExpired:
        reason = f"no result within {limit_s:g} s"
    else:
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        reason = f"the process ended {how}"
    result: Result = {
        "status": "answered" if check.is_question else "failed",
        "reason": reason,
        "seconds": seconds,
        "figures": {},
        "output": "\n".join(output)[-_MOST_OUTPUT:],
    }
    if check.is_question:
        result["answer"] = reason
    return result
