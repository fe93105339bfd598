"""Importing the package is light, and it exports what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import lightning_gaudi

ROOT = Path(lightning_gaudi.__file__).parent.parent
FORBIDDEN = ("habana_frameworks", "transformers", "diffusers", "jsonargparse", "tensorboard")

# Runs in a fresh Python: what does importing a module do beyond what importing another does?
PROBE = """
import json, os, subprocess, sys, threading
__import__(sys.argv[3])

def state():
    return set(sys.modules), dict(os.environ), set(threading.enumerate())

started = []
class Popen(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        started.append(str(args))
        super().__init__(*args, **kwargs)
subprocess.Popen = Popen
fork = os.fork
os.fork = lambda: started.append("fork") or fork()

modules, environment, threads = state()
__import__(sys.argv[1])
modules_after, environment_after, threads_after = state()
print(json.dumps({
    "modules": sorted(modules_after - modules),
    "environment": sorted(
        name
        for name in environment.keys() | environment_after.keys()
        if environment.get(name) != environment_after.get(name)
    ),
    "threads": [thread.name for thread in threads_after - threads],
    "processes": started,
    "were_loaded": sorted(name for name in sys.argv[2].split(",") if name in modules),
}))
"""


def probe(
    module: str, *, beyond: str, folder: Path | None = None, **variables: str
) -> dict[str, Any]:
    """What importing a module does in a fresh Python, beyond what importing another does."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("LIGHTNING_GAUDI_EMULATOR", "PT_HPU_LAZY_MODE")
    }
    environment["PYTHONPATH"] = os.pathsep.join(str(path) for path in (ROOT, folder) if path)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE, module, ",".join(FORBIDDEN), beyond],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def complaints(found: dict[str, Any]) -> list[str]:
    """What an import did that it must not do."""
    heavy = [name for name in found["modules"] if name.split(".")[0] in FORBIDDEN]
    heavy = sorted({name.split(".")[0] for name in heavy} - set(found["were_loaded"]))
    return [
        *(f"imports {name}" for name in heavy),
        *(f"writes {name}" for name in found["environment"]),
        *(f"starts thread {name}" for name in found["threads"]),
        *(f"starts process {name}" for name in found["processes"]),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("emulator", ["0", "1"])
def test_importing_is_light(emulator: str) -> None:
    found = probe("lightning_gaudi", beyond="lightning", LIGHTNING_GAUDI_EMULATOR=emulator)
    assert "lightning_gaudi.strategy" in found["modules"]
    assert complaints(found) == []


def test_the_test_above_can_fail(tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text(
        "import os, subprocess, sys, threading, time\n"
        "import diffusers\n"
        "os.environ['PT_HPU_SOMETHING'] = '1'\n"
        "threading.Thread(target=time.sleep, args=(1,), name='busy', daemon=True).start()\n"
        "subprocess.run([sys.executable, '-c', ''])\n"
    )
    (tmp_path / "diffusers.py").write_text("")
    found = complaints(probe("heavy", beyond="json", folder=tmp_path))
    assert found[:3] == ["imports diffusers", "writes PT_HPU_SOMETHING", "starts thread busy"]
    assert [text.split("(")[0] for text in found[3:]] == ["starts process "]


def test_all_is_sorted_and_complete() -> None:
    names = lightning_gaudi.__all__
    assert names == sorted(names)
    public = {
        name
        for name, value in vars(lightning_gaudi).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(names)
    assert {"GaudiStrategy", "HPUAccelerator", "HPUGraphCallback", "HPUPrecision"} <= public
