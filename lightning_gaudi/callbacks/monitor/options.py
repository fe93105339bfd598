"""The arguments of `CompileMonitor`, checked."""

from __future__ import annotations

from typing import Any, Literal

from lightning_gaudi.callbacks.monitor.budget import check_count
from lightning_gaudi.callbacks.monitor.files import is_elsewhere
from lightning_gaudi.callbacks.options import check_switch
from lightning_gaudi.errors import ConfigurationError

OnExceed = Literal["warn", "raise"]


def check_limits(**limits: Any) -> dict[str, int]:
    """The limits that were given, by the name of what they limit.

    Args:
        limits: ``max_compilations`` and the like; None for no limit.

    Raises:
        ConfigurationError: One is no whole number of 0 or more.
    """
    given = {name: value for name, value in limits.items() if value is not None}
    for name, value in given.items():
        check_count(name, value)
    return {name.removeprefix("max_"): value for name, value in given.items()}


def check_options(
    *,
    warmup_steps: Any,
    on_exceed: Any,
    log_every_n_steps: Any,
    report: Any,
    dirpath: Any,
    host_reads: Any,
) -> None:
    """Check the others.

    Raises:
        ConfigurationError: One has a value that it cannot have.
    """
    check_count("warmup_steps", warmup_steps)
    if on_exceed not in ("warn", "raise"):
        raise ConfigurationError(f"on_exceed must be 'warn' or 'raise', but it is {on_exceed!r}.")
    if log_every_n_steps is not None:
        check_count("log_every_n_steps", log_every_n_steps)
    check_switch("report", report)
    if is_elsewhere(dirpath):
        raise ConfigurationError(
            f"dirpath must be a folder of this machine, but it is {str(dirpath)!r}."
        )
    check_switch("host_reads", host_reads)
