"""Which steps of a stage are recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerAction

from lightning_gaudi.errors import ConfigurationError

Schedule = Callable[[int], ProfilerAction]


def make_schedule(
    *, skip_first: int, wait: int, warmup: int, active: int | None, repeat: int
) -> Schedule:
    """The action of each step, counted from 0.

    After `skip_first` steps come cycles of `wait` steps that cost nothing, `warmup` steps that are
    profiled and thrown away, and `active` steps that are recorded; without `active` the first
    cycle records all steps that follow.

    Args:
        skip_first: 0 or more.
        wait: 0 or more.
        warmup: 0 or more.
        active: 1 or more; None for all that follow.
        repeat: How many cycles; 0 for cycles to the end.

    Raises:
        ConfigurationError: One is no such number.
    """
    for name, value, least in (
        ("skip_first", skip_first, 0),
        ("wait", wait, 0),
        ("warmup", warmup, 0),
        ("active", active, 1),
        ("repeat", repeat, 0),
    ):
        if name == "active" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigurationError(
                f"{name} must be a whole number of {least} or more"
                f"{', or None for all steps' if name == 'active' else ''}, but it is {value!r}."
            )

    def action(step: int) -> ProfilerAction:
        step -= skip_first
        if step < 0:
            return ProfilerAction.NONE
        length = wait + warmup + (active or 0)
        if active is not None:
            if repeat and step >= repeat * length:
                return ProfilerAction.NONE
            step %= length
        if step < wait:
            return ProfilerAction.NONE
        if step < wait + warmup:
            return ProfilerAction.WARMUP
        is_last = active is not None and step == length - 1
        return ProfilerAction.RECORD_AND_SAVE if is_last else ProfilerAction.RECORD

    return action


def check_schedule(schedule: Any) -> Schedule:
    """Check a schedule that the user has written.

    Raises:
        ConfigurationError: It cannot be called with a step, or gives no action.
    """
    found = schedule(0) if callable(schedule) else None
    if not isinstance(found, ProfilerAction):
        what = f"it gives {found!r} for step 0" if callable(schedule) else f"it is {schedule!r}"
        raise ConfigurationError(
            "schedule must be a function of the step that returns a torch.profiler.ProfilerAction, "
            f"such as torch.profiler.schedule(wait=1, warmup=1, active=3) makes, but {what}."
        )
    checked: Schedule = schedule
    return checked


def is_recording(action: ProfilerAction) -> bool:
    """Whether what runs now will be in a trace."""
    return action in (ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE)
