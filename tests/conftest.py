"""One emulated HPU in lazy mode for the whole test process; leaks between tests are errors."""

from __future__ import annotations

import os

os.environ["LIGHTNING_GAUDI_EMULATOR"] = "1"
os.environ["PT_HPU_LAZY_MODE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gc
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import lightning_gaudi  # noqa: F401 - installs the emulated HPU
from lightning_gaudi.emulator import accounting, capture
from lightning_gaudi.runtime import loading

loading.load("lazy")
torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other
# Each capture collects garbage first; the thousands of objects that imports left need no visit.
gc.collect()
gc.freeze()

ROOT = Path(__file__).parent.parent
# Lightning sets these while it works; they are not ours to guard.
_LIGHTNING_VARIABLES = {"PL_GLOBAL_SEED", "PL_SEED_WORKERS", "MASTER_ADDR", "MASTER_PORT"}


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    """Each test starts from a seed and leaves the process as it found it."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    environment = dict(os.environ)
    dtype = torch.get_default_dtype()
    yield
    left_capturing = capture.current is not None
    capture.current = None
    accounting.flush("end of test")
    changed = {
        name
        for name in environment.keys() | os.environ.keys()
        if environment.get(name) != os.environ.get(name) and not name.startswith("PYTEST_")
    } - _LIGHTNING_VARIABLES
    os.environ.clear()
    os.environ.update(environment)
    assert not changed, f"the test changed environment variables: {sorted(changed)}"
    assert torch.get_default_dtype() == dtype, "the test changed the default dtype"
    assert not torch.is_autocast_enabled("cpu"), "the test left autocast on"
    assert not left_capturing, "the test left a capture in progress"


RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Run code in a fresh Python: ``run_python(code, PT_HPU_LAZY_MODE="0", NAME=None)``.

    The environment is this one's with the changes given; None removes a variable. The code lies in
    ``tmp_path / "script.py"``, further arguments follow in ``args``.
    """

    def run(
        code: str, *, args: tuple[str, ...] = (), check: bool = True, **variables: str | None
    ) -> subprocess.CompletedProcess[str]:
        environment = dict(os.environ)
        for name, value in variables.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        script = tmp_path / "script.py"
        script.write_text(textwrap.dedent(code))
        result = subprocess.run(
            [sys.executable, "-W", "ignore", str(script), *args],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if check:
            assert result.returncode == 0, result.stderr
        return result

    return run
