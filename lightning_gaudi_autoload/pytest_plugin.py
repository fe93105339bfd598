"""The pytest marker ``hpu_budget``; what it does is in `lightning_gaudi.testing`.

Pytest loads this in every run where the package is installed, so it imports nothing but pytest.
Torch, Lightning and `lightning_gaudi` are imported when the first marked test is called.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator

import pytest

_MARKER = "hpu_budget"
_LIMITS = ("compilations", "host_reads", "host_copies", "cpu_fallbacks")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        f"{_MARKER}({', '.join(f'{name}=N' for name in _LIMITS)}): run the test on the HPU, or the "
        "emulated one, and fail it where it does more of any of these; one or more of them",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Check every marker before the first test runs.

    Raises:
        UsageError: A marker has something that it cannot have.
    """
    for item in items:
        _limits_of(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Run a marked test under its budget. Its fixtures are not part of it."""
    limits = _limits_of(item)
    if not limits:
        return (yield)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other libraries' own, which are not the test's to answer
        from lightning_gaudi.errors import BudgetExceededError, GaudiNotAvailableError
        from lightning_gaudi.runtime import device
        from lightning_gaudi.testing import hpu_budget
    try:
        device.require()
    except GaudiNotAvailableError as error:
        # Never run it on the CPU instead: it would pass without having tested anything.
        message = f"@pytest.mark.{_MARKER}: {error}"
        pytest.fail(message, pytrace=False)
    has_passed = False
    try:
        with hpu_budget(**limits, where="in this test"):
            result = yield
            has_passed = True
        return result
    except BudgetExceededError as error:
        if not has_passed:  # the test's own, from a CompileMonitor
            raise
        message = str(error)
    pytest.fail(message, pytrace=False)


def _limits_of(item: pytest.Item) -> dict[str, int]:
    """The limits of a test's markers; the nearest to the test wins, name by name.

    Raises:
        UsageError: One has something that it cannot have.
    """
    limits: dict[str, int] = {}
    for marker in reversed(list(item.iter_markers(_MARKER))):
        known = ", ".join(_LIMITS)
        if marker.args or not marker.kwargs:
            raise _usage_error(item, f"takes one or more of {known} by name")
        for name, value in marker.kwargs.items():
            if name not in _LIMITS:
                raise _usage_error(item, f"has no {name!r}; it takes {known}")
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise _usage_error(
                    item, f"{name} must be a whole number of 0 or more, but it is {value!r}"
                )
            limits[name] = value
    return limits


def _usage_error(item: pytest.Item, what: str) -> pytest.UsageError:
    return pytest.UsageError(f"{item.nodeid}: @pytest.mark.{_MARKER} {what}")
