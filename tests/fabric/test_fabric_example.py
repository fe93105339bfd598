"""The example of a Fabric loop runs as a user runs it, and says what it should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "fabric_train.py"


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_it_trains_as_on_the_cpu_and_recognises_digits() -> None:
    result = run("--epochs", "3", "--check")
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    assert result.stderr.count("HPU: 1 x GAUDI2 (emulated), lazy mode") == 1
    found = re.search(r"([\d.]+)% of 298 held-out digits recognised", result.stdout)
    assert found is not None, result.stdout
    assert float(found[1]) > 88
    difference = re.search(r"to the CPU's (\S+), 0 other digits", result.stdout)
    assert difference is not None, result.stdout
    assert float(difference[1]) < 1e-5


@pytest.mark.slow
def test_check_is_for_one_card() -> None:
    result = run("--precision", "bf16-mixed", "--check")
    assert result.returncode == 2
    assert "--check compares one card in 32-true" in result.stderr
