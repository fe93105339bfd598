"""Run the core tests on the oldest Lightning that the package supports.

    python checks/oldest_lightning.py [PYTEST ARGUMENTS]

Makes an environment on top of this one, in which only Lightning differs.
"""

from __future__ import annotations

import site
import subprocess
import sys
import venv
from pathlib import Path

OLDEST = "2.5.6"
ROOT = Path(__file__).parent.parent
ENVIRONMENT = Path(sys.prefix) / "oldest-lightning"
PYTHON = ENVIRONMENT / "bin" / "python"
CORE = (
    "tests/test_fit_parity.py",
    "tests/test_step_boundary.py",
    "tests/test_registration.py",
    "tests/test_accelerator.py",
    "tests/test_exceptions.py",
    "tests/test_distributed.py",
    "tests/test_compile_mode.py",
    "tests/test_precision.py",
    "tests/callbacks",
    "tests/data",
)


def make_environment() -> None:
    """Make the environment, once.

    Raises:
        CalledProcessError: pip cannot install Lightning.
    """
    marker = ENVIRONMENT / f"lightning-{OLDEST}"
    if marker.exists():
        return
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    (folder,) = ENVIRONMENT.glob("lib/python*/site-packages")
    # Its own packages come first, then those of this environment.
    below = "\n".join(path for path in site.getsitepackages() if Path(path).is_dir())
    (folder / "zz_below.pth").write_text(below + "\n")
    install = [PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", f"lightning=={OLDEST}"]
    subprocess.run(install, check=True)
    marker.touch()


def main() -> int:
    """Run the tests; returns pytest's exit code."""
    make_environment()
    found = subprocess.run(
        [PYTHON, "-c", "import lightning; print(lightning.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if found != OLDEST:
        print(f"the environment has lightning {found} where {OLDEST} was wanted")
        return 1
    print(f"lightning {found}", flush=True)
    arguments = sys.argv[1:] or ["--numprocesses", "2", *CORE]
    return subprocess.run([PYTHON, "-m", "pytest", *arguments], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
