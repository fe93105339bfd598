"""No test of several processes may leave one behind."""

from distributed.conftest import _no_process_left  # noqa: F401 - a fixture of each test
