"""Check that the package uses no torch API newer than the oldest torch it supports.

    python checks/oldest_torch.py

Fetches that torch's wheel once, unpacks its Python sources into the environment's folder (never
installs it), and lets mypy check the package against them. The emulator is left out: it runs on
machines without a card, with a torch of its own (its README). mypy sees names, arguments and types;
it does not see behaviour, nor what stands behind ``getattr`` or a ``type: ignore``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

OLDEST = "2.6.0"
ROOT = Path(__file__).parent.parent
SOURCES = Path(sys.prefix) / "oldest-torch" / OLDEST
# The wheel for this platform has no CUDA libraries, and the Python sources are the same.
PLATFORM = "manylinux_2_28_aarch64"
CONFIG = f"""
[mypy]
strict = true
# That torch has fewer annotations.
disallow_untyped_calls = false
warn_return_any = false
warn_unused_ignores = false
exclude = lightning_gaudi/emulator/
mypy_path = {SOURCES}

[mypy-torch.*]
follow_imports = silent
ignore_errors = true
implicit_reexport = true

[mypy-habana_frameworks.*]
ignore_missing_imports = true

[mypy-lightning_gaudi.emulator.*]
ignore_errors = true
"""


def fetch() -> None:
    """Unpack the oldest torch's Python sources, once.

    Raises:
        CalledProcessError: pip cannot get the wheel.
    """
    if SOURCES.is_dir():
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--only-binary=:all:", "--platform", PLATFORM, "--python-version", "3.11"),
                *("--dest", folder, f"torch=={OLDEST}"),
            ],
            check=True,
        )
        (wheel,) = Path(folder).glob("*.whl")
        unpacked = Path(folder) / "sources"
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith("torch/") and name.endswith((".py", ".pyi", "py.typed")):
                    archive.extract(name, unpacked)
        SOURCES.parent.mkdir(exist_ok=True)
        subprocess.run(["mv", str(unpacked), str(SOURCES)], check=True)


def run_mypy(*what: str) -> int:
    """Run mypy against the oldest torch.

    Args:
        *what: mypy's arguments: files, or ``-p`` and a package.

    Returns:
        Its exit code.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "mypy.ini"
        config.write_text(CONFIG)
        cache = SOURCES.parent / "mypy-cache"
        command = ["--config-file", str(config), "--cache-dir", str(cache), *what]
        return subprocess.run([sys.executable, "-m", "mypy", *command], cwd=ROOT).returncode


def main() -> int:
    """Check the package, and that the check can fail."""
    fetch()
    with tempfile.TemporaryDirectory() as folder:
        newer = Path(folder) / "newer.py"
        newer.write_text("import torch\n\ntorch.accelerator.memory_stats()  # since torch 2.9\n")
        print(f"A name that torch {OLDEST} does not have, which must be found:", flush=True)
        if run_mypy(str(newer)) == 0:
            print("It was not found, so this check checks nothing.")
            return 1
    print(f"The package against torch {OLDEST}:", flush=True)
    return run_mypy("-p", "lightning_gaudi", "-p", "lightning_gaudi_autoload")


if __name__ == "__main__":
    sys.exit(main())
