"""`@pytest.mark.hpu_budget` and `hpu_budget`: fail where the device is made to do more."""

from __future__ import annotations

import textwrap

import pytest
import torch

from lightning_gaudi.emulator import accounting, events
from lightning_gaudi.errors import (
    BudgetExceededError,
    ConfigurationError,
    GaudiNotAvailableError,
)
from lightning_gaudi.runtime import loading
from lightning_gaudi.testing import hpu_budget

pytest_plugins = ["pytester"]

HEAD = """
import pytest
import torch

def add(rows):
    return torch.ones(rows, 3, device="hpu") + 1
"""


def run(pytester, code, *args):
    """Run tests in this process, which has the emulated HPU."""
    pytester.makepyfile(HEAD + textwrap.dedent(code))
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rA", *args)


@pytest.fixture(autouse=True)
def _no_record_is_left_open():
    yield
    assert events._records == []
    assert type(accounting.pending.ops) is list


# --- the context manager --------------------------------------------------------------------------


def test_within_the_budget():
    with hpu_budget(compilations=1, host_reads=1) as spending:
        x = torch.ones(3, device="hpu") * 2
        assert spending.counts.compilations == 0
        x.sum().item()
        assert spending.counts.compilations == 1
    assert spending.counts.host_reads == 1
    assert spending.ledger.total.host_reads == 1


def test_what_is_pending_at_the_end_is_part_of_the_block_and_at_its_start_is_not():
    torch.ones(3, device="hpu").sin()
    expected = pytest.raises(BudgetExceededError, match=r"ations=0\) is exceeded: 1 compilation in")
    with expected, hpu_budget(compilations=0) as spending:
        torch.ones(3, device="hpu").cos()
    (finding,) = spending.ledger.worst("compilation")
    assert finding.texts == [
        "nothing like these 2 ops, from fill_.Scalar to cos, was compiled before"
    ]


def test_the_count_does_not_depend_on_what_was_compiled_before():
    for _ in range(2):
        with hpu_budget(compilations=5) as spending:
            torch.ones(3, device="hpu").tan()
        assert spending.counts.compilations == 1


def test_the_message_is_the_monitors():
    budget = hpu_budget(host_reads=1, cpu_fallbacks=0, compilations=50)
    with pytest.raises(BudgetExceededError) as caught, budget:
        for _ in range(3):
            torch.ones(2, device="hpu").sum().item()
        torch.linalg.eigvalsh(torch.eye(2, device="hpu"))
    lines = str(caught.value).splitlines()
    assert lines[0] == "hpu_budget(host_reads=1) is exceeded: 3 host reads in the block."
    assert lines[1].startswith("  tests/test_testing_plugin.py:")
    assert lines[1].endswith(" .item() 3 times")
    assert lines[2].startswith("What to change: Take it out of the step")
    assert lines[3] == "hpu_budget(cpu_fallbacks=0) is exceeded: 1 CPU fallback in the block."
    assert lines[4].endswith(" _linalg_eigh once")


def test_an_error_in_the_block_comes_first():
    with pytest.raises(KeyError), hpu_budget(host_reads=0):
        torch.ones(2, device="hpu").tolist()
        raise KeyError


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "hpu_budget needs a limit: one or more of compilations, host_reads"),
        ({"host_reads": -1}, "host_reads must be a whole number of 0 or more"),
        ({"compilations": "3"}, "compilations must be a whole number .* it is '3'"),
    ],
    ids=["none", "negative", "text"],
)
def test_limits_that_cannot_be(limits, message):
    with pytest.raises(ConfigurationError, match=message), hpu_budget(**limits):
        pass


def test_without_an_hpu_the_block_does_not_run(monkeypatch):
    monkeypatch.setattr(loading, "is_software_present", lambda: False)
    expected = pytest.raises(GaudiNotAvailableError, match="export LIGHTNING_GAUDI_EMULATOR=1")
    with expected, hpu_budget(host_reads=0):
        pytest.fail("it ran")


# --- the marker -----------------------------------------------------------------------------------


@pytest.mark.hpu_budget(compilations=1, host_reads=0)
def test_this_package_uses_it_itself():
    torch.ones(4, device="hpu") * 3


def test_passing_failing_and_unmarked(pytester):
    result = run(
        pytester,
        """
        @pytest.mark.hpu_budget(compilations=1)
        def test_same():
            for _ in range(3):
                add(2)
                torch.ones(1, device="hpu").cpu()

        @pytest.mark.hpu_budget(compilations=1, host_reads=5)
        def test_grows():
            for rows in (2, 3, 4):
                add(rows).sum().item()

        @pytest.mark.hpu_budget(host_reads=0)
        def test_raises():
            add(2).tolist()
            raise KeyError("its own")

        @pytest.mark.hpu_budget(host_reads=0)
        def test_has_a_monitor():
            from lightning_gaudi.errors import BudgetExceededError
            raise BudgetExceededError("a monitor's")

        def test_unmarked():
            assert add(2).sum().item() == 12
        """,
    )
    result.assert_outcomes(passed=2, failed=3)
    output = result.stdout.str()
    assert "E       lightning_gaudi.errors.BudgetExceededError: a monitor's" in output
    assert "hpu_budget(compilations=1) is exceeded: 3 compilations in this test." in output
    assert "[3, 3]:float32, before [2, 3]:float32" in output
    assert "KeyError: 'its own'" in output
    assert "hpu_budget(host_reads=0) is exceeded" not in output
    # Only the message: no traceback through the plugin.
    assert "pytest_plugin.py" not in output


def test_a_failure_names_the_line_and_the_new_shape(pytester):
    result = run(
        pytester,
        """
        @pytest.mark.hpu_budget(compilations=1)
        def test_shapes():
            for rows in (2, 3):
                x = torch.ones(rows, 3).to("hpu")
                (x * 2).cpu()  # here
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "hpu_budget(compilations=1) is exceeded: 2 compilations in this test.",
            "*test_a_failure_names_the_line_and_the_new_shape.py:11 mul.Tensor once: "
            "nothing like mul.Tensor was compiled before",
            "*test_a_failure_names_the_line_and_the_new_shape.py:11 mul.Tensor once: "
            "[[]3, 3[]]:float32, before [[]2, 3[]]:float32",
            "What to change: *",
        ]
    )


def test_classes_parameters_and_expected_failures(pytester):
    result = run(
        pytester,
        """
        @pytest.mark.hpu_budget(host_reads=0)
        class TestStep:
            def test_quiet(self):
                add(2)

            @pytest.mark.hpu_budget(host_reads=1)
            def test_nearest_wins(self):
                add(2).tolist()

            @pytest.mark.hpu_budget(compilations=0)
            def test_names_add_up(self):
                torch.ones(2).to("hpu").tolist()

            @pytest.mark.xfail(strict=True, reason="reads")
            def test_expected(self):
                add(2).tolist()

            @pytest.mark.parametrize("rows", [1, 2])
            def test_parameters(self, rows):
                if rows == 2:
                    add(rows).tolist()

        @pytest.fixture
        def read():
            return add(2).tolist()

        @pytest.mark.hpu_budget(host_reads=0)
        def test_fixtures_are_not_counted(read):
            assert read[0] == [2, 2, 2]
        """,
    )
    result.assert_outcomes(passed=4, failed=2, xfailed=1)
    result.stdout.fnmatch_lines(["FAILED *test_names_add_up*", "FAILED *test_parameters?2?*"])


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("host_reads=-1", "host_reads must be a whole number of 0 or more, but it is -1"),
        ("host_reads=True", "host_reads must be a whole number of 0 or more, but it is True"),
        ("reads=0", "has no 'reads'; it takes compilations, host_reads, host_copies, cpu_"),
        ("0", "takes one or more of compilations, host_reads, host_copies, cpu_fallbacks by name"),
        ("", "takes one or more of compilations, host_reads, host_copies, cpu_fallbacks by name"),
    ],
    ids=["negative", "bool", "unknown", "positional", "empty"],
)
def test_markers_that_cannot_be_stop_the_run(pytester, mark, message):
    result = run(
        pytester,
        f"""
        @pytest.mark.hpu_budget({mark})
        def test_it():
            pass
        """,
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"test_it: @pytest.mark.hpu_budget {message}" in result.stderr.str()


def test_the_marker_is_registered(pytester):
    pytester.makepyfile("import pytest\n\n@pytest.mark.hpu_budget(host_reads=0)\ndef test(): pass")
    pytester.runpytest_inprocess("--strict-markers").assert_outcomes(passed=1)
    result = pytester.runpytest_inprocess("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.hpu_budget(compilations=N, host_reads=N, *"])


@pytest.mark.slow
def test_without_an_hpu_a_marked_test_fails_and_the_others_import_nothing(pytester, monkeypatch):
    """In a process of its own, and under xdist, as CI has it."""
    monkeypatch.delenv("LIGHTNING_GAUDI_EMULATOR")
    pytester.makepyfile(
        """
        import sys
        import pytest

        def test_light():
            heavy = {"torch", "lightning", "lightning_gaudi", "numpy"}
            assert not heavy.intersection(sys.modules)

        @pytest.mark.hpu_budget(host_reads=0)
        def test_marked():
            print("it ran")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", "-n", "1")
    result.assert_outcomes(passed=1, failed=1)
    output = result.stdout.str()
    assert "@pytest.mark.hpu_budget: no HPU: the Gaudi software" in output
    assert "export LIGHTNING_GAUDI_EMULATOR=1" in output
    assert "it ran" not in output


@pytest.mark.slow
def test_the_variable_exported_before_python_starts(pytester):
    """As CI has it: the package is imported before pytest, which must not warn of that."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.hpu_budget(compilations=0)
        def test_marked():
            import torch
            torch.ones(3, device="hpu")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", "-n", "1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["hpu_budget(compilations=0) is exceeded: 1 compilation in *"])
